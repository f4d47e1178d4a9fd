r"""NvGesture, 25 classes, as distributed or as frames for the reference (see datasets/nvgesture/README.md).

    python -m rgbd_jax.main --config configs/nvgesture.py --workdir runs/nv_rgb --config.data.raw_dir=NVGESTURE
    python -m rgbd_jax.main --config configs/nvgesture.py:depth --workdir runs/nv_depth --config.data.raw_dir=NVGESTURE
    python -m rgbd_jax.main --config configs/nvgesture.py:fusion --workdir runs/nv_fusion \
        --config.fusion.init_rgb_from=runs/nv_rgb --config.fusion.init_depth_from=runs/nv_depth

The paper's recipe, including quirks of its schedule and fusion: 8 devices times 6 clips, 100 epochs, 1050 clips
to train on; both modalities start from Jester weights (`--config.init_from`, see docs/from_pytorch.md).

Published top-1, pre-trained on Jester: RGB 89.58 %, depth 90.62 %, fusion 91.70 %. Neither the accuracy nor the time
has been measured with this package; one epoch is 21 steps of 48 clips of 420 GFLOP each, for fusion twice that.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of NvGesture for "rgb", "depth" or "fusion"."""
    config = default_config(modality)
    config.data.dataset = "nvgesture"
    config.data.depth.colour_map = "grey"  # the reference was trained on grey depth
    config.data.transforms.resize = (256, 256)
    config.data.transforms.reference_nvgesture_crop = True
    config.data.transforms.flip_probability = 0.0
    config.model.frp_window = 4
    config.loss.distillation_temperature = 0.4
    config.schedule.name = "reference_cosine"
    config.data.transforms.reference_separate_draws = True
    config.fusion.reference_layout = True
    return config
