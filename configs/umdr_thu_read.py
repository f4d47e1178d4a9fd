r"""UMDR on THU-READ, 40 classes, four cross-subject folds (see datasets/thu_read/README.md).

    python -m rgbd_jax data build thu_read --raw_dir THU_READ --data_dir data
    python -m rgbd_jax.main --config configs/umdr_thu_read.py --workdir runs/umdr_thu_read_rgb
    python -m rgbd_jax.main --config configs/umdr_thu_read.py:depth --workdir runs/umdr_thu_read_depth
    python -m rgbd_jax.main --config configs/umdr_thu_read.py:fusion --workdir runs/umdr_thu_read_fusion \
        --config.fusion.init_rgb_from=runs/umdr_thu_read_rgb --config.fusion.init_depth_from=runs/umdr_thu_read_depth

The recipe of the authors' second paper: 8 devices times 16 clips, 100 epochs, mixup and ShuffleMix, 32 frames of a
clip; `:rgb_16`, `:rgb_64` and so on take 16 or 64. The fusion trains over both networks, which are frozen.
`--config.init_from` starts from UMDR weights of Jester, as the reference does. These are of fold 1: add
`--config.data.fold=2` for fold 2, and so on.

No published accuracy is listed here. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import thu_read

from rgbd_jax.config import umdr_config


def get_config(argument: str = "rgb") -> ConfigDict:
    """Returns the config for "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames."""
    return umdr_config(thu_read.get_config, argument)
