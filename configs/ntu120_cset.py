r"""NTU RGB+D 120, cross-setup, 120 classes (see datasets/ntu_rgbd/README.md).

    python -m rgbd_jax data build ntu_rgbd --raw_dir NTU --data_dir data
    python -m rgbd_jax.main --config configs/ntu120_cset.py --workdir runs/ntu120_cset_rgb
    python -m rgbd_jax.main --config configs/ntu120_cset.py:depth --workdir runs/ntu120_cset_depth
    python -m rgbd_jax.main --config configs/ntu120_cset.py:fusion --workdir runs/ntu120_cset_fusion \
        --config.fusion.init_rgb_from=runs/ntu120_cset_rgb --config.fusion.init_depth_from=runs/ntu120_cset_depth

The recipe of configs/ntu_cs.py, trained on the set-ups of even number and evaluated on the others. A data set that was
prepared with set-ups 1 to 32 serves this protocol, the other one of NTU RGB+D 120 and both of NTU RGB+D 60.

The paper reports no accuracy for it. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import ntu_cs


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of NTU RGB+D 120, cross-setup: "rgb", "depth" or "fusion"."""
    config = ntu_cs.get_config(modality)
    config.data.train_split = "cset_train"
    config.data.eval_split = "cset_validation"
    return config
