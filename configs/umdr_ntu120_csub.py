r"""UMDR on NTU RGB+D 120, cross-subject, 120 classes (see datasets/ntu_rgbd/README.md).

    python -m rgbd_jax data build ntu_rgbd --raw_dir NTU --data_dir data
    python -m rgbd_jax.main --config configs/umdr_ntu120_csub.py --workdir runs/umdr_ntu120_csub_rgb
    python -m rgbd_jax.main --config configs/umdr_ntu120_csub.py:depth --workdir runs/umdr_ntu120_csub_depth
    python -m rgbd_jax.main --config configs/umdr_ntu120_csub.py:fusion --workdir runs/umdr_ntu120_csub_fusion \
        --config.fusion.init_rgb_from=runs/umdr_ntu120_csub_rgb \
        --config.fusion.init_depth_from=runs/umdr_ntu120_csub_depth

The recipe of the authors' second paper: 8 devices times 16 clips, 100 epochs, mixup and ShuffleMix, 32 frames of a
clip; `:rgb_16`, `:rgb_64` and so on take 16 or 64. The fusion trains over both networks, which are frozen.

Published top-1 for 32 frames: RGB 89.8 %, depth 92.6 %. Neither the accuracy nor the time has been measured with this
package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import ntu120_csub

from rgbd_jax.config import umdr_config


def get_config(argument: str = "rgb") -> ConfigDict:
    """Returns the config for "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames."""
    return umdr_config(ntu120_csub.get_config, argument)
