r"""UMDR on NTU RGB+D 60, cross-subject, 60 classes (see datasets/ntu_rgbd/README.md).

    python -m rgbd_jax data build ntu_rgbd --raw_dir NTU --data_dir data
    python -m rgbd_jax.main --config configs/umdr_ntu_cs.py --workdir runs/umdr_ntu_cs_rgb
    python -m rgbd_jax.main --config configs/umdr_ntu_cs.py:depth --workdir runs/umdr_ntu_cs_depth
    python -m rgbd_jax.main --config configs/umdr_ntu_cs.py:fusion --workdir runs/umdr_ntu_cs_fusion \
        --config.fusion.init_rgb_from=runs/umdr_ntu_cs_rgb --config.fusion.init_depth_from=runs/umdr_ntu_cs_depth

The recipe of the authors' second paper: 8 devices times 16 clips, 100 epochs, mixup and ShuffleMix, 32 frames of a
clip; `:rgb_16`, `:rgb_64` and so on take 16 or 64. The fusion trains over both networks, which are frozen.

Published top-1 for 16, 32 and 64 frames: RGB 92.0 %, 92.2 % and 92.9 %; depth 94.5 %, 94.8 % and 95.0 %; fusion 95.6 %,
95.9 % and 96.2 %. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import ntu_cs

from rgbd_jax.config import umdr_config


def get_config(argument: str = "rgb") -> ConfigDict:
    """Returns the config for "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames."""
    return umdr_config(ntu_cs.get_config, argument)
