r"""NTU RGB+D 60, cross-subject, 60 classes (see datasets/ntu_rgbd/README.md).

    python -m rgbd_jax data build ntu_rgbd --raw_dir NTU --data_dir data
    python -m rgbd_jax.main --config configs/ntu_cs.py --workdir runs/ntu_cs_rgb
    python -m rgbd_jax.main --config configs/ntu_cs.py:depth --workdir runs/ntu_cs_depth
    python -m rgbd_jax.main --config configs/ntu_cs.py:fusion --workdir runs/ntu_cs_fusion \
        --config.fusion.init_rgb_from=runs/ntu_cs_rgb --config.fusion.init_depth_from=runs/ntu_cs_depth

The paper's recipe, including quirks of its schedule, depth encoding and fusion: 8 devices times 6 clips, 100
epochs, 40320 clips to train on and 16560 to evaluate on. Colour and depth are cut around the person when the data set
is built, not while training. `--config.init_from` starts from Jester weights (see docs/from_pytorch.md).

Published top-1: RGB 90.3 %, depth 92.7 %, fusion 94.2 %. Neither the accuracy nor the time has been measured with this
package; one epoch is 840 steps of 48 clips of 420 GFLOP each, for fusion twice that.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of NTU RGB+D 60, cross-subject: "rgb", "depth" or "fusion"."""
    config = default_config(modality)
    config.data.dataset = "ntu_rgbd"
    config.data.train_split = "cs_train"
    config.data.eval_split = "cs_validation"
    config.data.depth.encoding = "reference_wrapped"
    config.schedule.name = "reference_cosine"
    config.data.transforms.reference_separate_draws = True
    config.fusion.reference_layout = True
    return config
