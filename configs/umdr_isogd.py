r"""UMDR on ChaLearn IsoGD, 249 classes (see datasets/isogd/README.md).

    python -m rgbd_jax data build isogd --raw_dir ISOGD --data_dir data
    python -m rgbd_jax.main --config configs/umdr_isogd.py --workdir runs/umdr_isogd_rgb --config.init_from=NTU
    python -m rgbd_jax.main --config configs/umdr_isogd.py:depth --workdir runs/umdr_isogd_depth --config.init_from=NTU
    python -m rgbd_jax.main --config configs/umdr_isogd.py:fusion --workdir runs/umdr_isogd_fusion \
        --config.fusion.init_rgb_from=runs/umdr_isogd_rgb --config.fusion.init_depth_from=runs/umdr_isogd_depth

The recipe of the authors' second paper: 8 devices times 16 clips, 100 epochs, mixup and ShuffleMix, 32 frames of a
clip; `:rgb_16`, `:rgb_64` and so on take 16 or 64. The fusion trains over both networks, which are frozen. The
reference starts from UMDR weights of NTU RGB+D (NTU: a run of configs/umdr_ntu_cs.py); leave `--config.init_from` out
to train from scratch.

Published top-1 for 16, 32 and 64 frames: RGB 60.6 %, 63.7 % and 64.4 %; depth 63.4 %, 64.6 % and 65.5 %; fusion 69.2 %,
72.6 % and 72.7 %. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import isogd

from rgbd_jax.config import umdr_config


def get_config(argument: str = "rgb") -> ConfigDict:
    """Returns the config for "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames."""
    return umdr_config(isogd.get_config, argument)
