r"""ChaLearn IsoGD, 249 classes (see datasets/isogd/README.md).

    python -m rgbd_jax data build isogd --raw_dir ISOGD --data_dir data
    python -m rgbd_jax.main --config configs/isogd.py --workdir runs/isogd_rgb --config.init_from=JESTER
    python -m rgbd_jax.main --config configs/isogd.py:depth --workdir runs/isogd_depth --config.init_from=JESTER
    python -m rgbd_jax.main --config configs/isogd.py:fusion --workdir runs/isogd_fusion \
        --config.fusion.init_rgb_from=runs/isogd_rgb --config.fusion.init_depth_from=runs/isogd_depth

The paper's recipe, including quirks of its warm-up and fusion: 8 devices times 6 clips, 300 epochs with the rate
lowered after 4 without improvement, 35876 clips to train on and 5784 to evaluate on, both modalities from Jester
weights (JESTER, see docs/from_pytorch.md). `--config.data.eval_split=test` evaluates on the 6271 test clips.

Published top-1, pre-trained on Jester: RGB 60.87 %, depth 60.17 %, fusion 66.79 %. Neither the accuracy nor the time
has been measured with this package; one epoch is 747 steps of 48 clips of 420 GFLOP each, for fusion twice that.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of IsoGD for "rgb", "depth" or "fusion"."""
    config = default_config(modality)
    config.data.dataset = "isogd"
    config.data.depth.colour_map = "grey"  # the reference was trained on grey depth
    config.data.transforms.resize = (256, 256)
    config.data.transforms.flip_probability = 0.0
    config.loss.distillation_temperature = 0.4  # 0.5 in the reference's own file for IsoGD
    config.schedule.name = "plateau"
    config.schedule.patience = 4
    config.train.epochs = 300
    config.data.transforms.reference_separate_draws = True
    config.fusion.reference_layout = True
    return config
