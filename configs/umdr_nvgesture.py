r"""UMDR on NvGesture, 25 classes (see datasets/nvgesture/README.md).

    python -m rgbd_jax data build nvgesture --raw_dir NVGESTURE --data_dir data
    python -m rgbd_jax.main --config configs/umdr_nvgesture.py --workdir runs/umdr_nvgesture_rgb
    python -m rgbd_jax.main --config configs/umdr_nvgesture.py:depth --workdir runs/umdr_nvgesture_depth
    python -m rgbd_jax.main --config configs/umdr_nvgesture.py:fusion --workdir runs/umdr_nvgesture_fusion \
        --config.fusion.init_rgb_from=runs/umdr_nvgesture_rgb --config.fusion.init_depth_from=runs/umdr_nvgesture_depth

The recipe of the authors' second paper: 8 devices times 16 clips, 100 epochs, mixup and ShuffleMix, 32 frames of a
clip; `:rgb_16`, `:rgb_64` and so on take 16 or 64. The fusion trains over both networks, which are frozen. The
reference starts from UMDR weights of Jester (JESTER); leave `--config.init_from` out to train from scratch.

No published accuracy is listed here. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import nvgesture

from rgbd_jax.config import umdr_config


def get_config(argument: str = "rgb") -> ConfigDict:
    """Returns the config for "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames."""
    return umdr_config(nvgesture.get_config, argument)
