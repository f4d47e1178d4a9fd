r"""UMDR on NTU RGB+D 60, cross-view, 60 classes (see datasets/ntu_rgbd/README.md).

    python -m rgbd_jax data build ntu_rgbd --raw_dir NTU --data_dir data
    python -m rgbd_jax.main --config configs/umdr_ntu_cv.py --workdir runs/umdr_ntu_cv_rgb
    python -m rgbd_jax.main --config configs/umdr_ntu_cv.py:depth --workdir runs/umdr_ntu_cv_depth
    python -m rgbd_jax.main --config configs/umdr_ntu_cv.py:fusion --workdir runs/umdr_ntu_cv_fusion \
        --config.fusion.init_rgb_from=runs/umdr_ntu_cv_rgb --config.fusion.init_depth_from=runs/umdr_ntu_cv_depth

The recipe of the authors' second paper: 8 devices times 16 clips, 100 epochs, mixup and ShuffleMix, 32 frames of a
clip; `:rgb_16`, `:rgb_64` and so on take 16 or 64. The fusion trains over both networks, which are frozen.

Published top-1 for 16, 32 and 64 frames: RGB 95.3 %, 95.8 % and 96.3 %; depth 95.4 %, 95.9 % and 96.5 %; fusion 97.5 %,
97.8 % and 98.0 %. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import ntu_cv

from rgbd_jax.config import umdr_config


def get_config(argument: str = "rgb") -> ConfigDict:
    """Returns the config for "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames."""
    return umdr_config(ntu_cv.get_config, argument)
