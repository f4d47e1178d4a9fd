r"""Your own clips and a network small enough for a laptop, for a test in minutes (docs/own_data.md).

    python -m rgbd_jax.main --config configs/folder_small.py --workdir runs/small --config.data.raw_dir=RAW
    python -m rgbd_jax.main --config configs/folder_small.py:depth --workdir runs/small_depth --config.data.raw_dir=RAW
    python -m rgbd_jax.main --config configs/folder_small.py:fusion --workdir runs/small_fusion \
        --config.data.raw_dir=RAW \
        --config.fusion.init_rgb_from=runs/small --config.fusion.init_depth_from=runs/small_depth

The network and recipe of the demo: a quarter of the paper's width, 16 frames of 64x64 pixels, 20 epochs. An epoch of
600 clips takes some 20 seconds on two CPU cores.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import demo

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the small config for a folder of clips and "rgb", "depth" or "fusion"."""
    config = demo.get_config(modality)
    config.data.dataset = "rgbd_folder"
    config.data.depth = default_config(modality).data.depth
    config.data.transforms.resize = (96, 72)  # of frames that are 4:3
    return config
