r"""THU-READ, 40 classes, four cross-subject folds (see datasets/thu_read/README.md).

    python -m rgbd_jax data build thu_read --raw_dir THU_READ --data_dir data
    python -m rgbd_jax.main --config configs/thu_read.py --workdir runs/thu1_rgb --config.init_from=JESTER
    python -m rgbd_jax.main --config configs/thu_read.py:depth --workdir runs/thu1_depth --config.init_from=JESTER
    python -m rgbd_jax.main --config configs/thu_read.py:fusion --workdir runs/thu1_fusion \
        --config.fusion.init_rgb_from=runs/thu1_rgb --config.fusion.init_depth_from=runs/thu1_depth

These are of fold 1; add `--config.data.fold=2` for fold 2, and so on, with workdirs of its own. The same prepared data
set serves all folds: 720 clips to train on, 240 to evaluate on. The paper's recipe, including quirks of its schedule,
depth encoding and fusion: 8 devices times 6 clips, 100 epochs, both modalities from Jester weights (JESTER, see
docs/from_pytorch.md).

Published top-1, pre-trained on Jester: RGB 81.25 %, depth 77.92 %, fusion 87.04 %. Neither the accuracy nor the time
has been measured with this package; one epoch is 15 steps of 48 clips of 420 GFLOP each, for fusion twice that.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of THU-READ for "rgb", "depth" or "fusion"; `config.data.fold` is 1 to 4."""
    config = default_config(modality)
    config.data.dataset = "thu_read"
    config.data.fold = 1
    fold = config.data.get_ref("fold").to_str()
    config.data.train_split = "fold" + fold + "_train"
    config.data.eval_split = "fold" + fold + "_validation"
    config.data.depth.encoding = "reference_wrapped"  # these two for single-channel depth only
    config.data.depth.reference_person_crop = True
    config.data.transforms.crop_size = 200
    config.data.transforms.rotation_probability = 0.8
    config.data.transforms.rotation_degrees = (-45, 45)
    config.schedule.name = "reference_cosine"
    config.data.transforms.reference_separate_draws = True
    config.fusion.reference_layout = True
    return config
