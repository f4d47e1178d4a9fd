r"""NTU RGB+D 120, cross-subject, 120 classes (see datasets/ntu_rgbd/README.md).

    python -m rgbd_jax data build ntu_rgbd --raw_dir NTU --data_dir data
    python -m rgbd_jax.main --config configs/ntu120_csub.py --workdir runs/ntu120_csub_rgb
    python -m rgbd_jax.main --config configs/ntu120_csub.py:depth --workdir runs/ntu120_csub_depth
    python -m rgbd_jax.main --config configs/ntu120_csub.py:fusion --workdir runs/ntu120_csub_fusion \
        --config.fusion.init_rgb_from=runs/ntu120_csub_rgb --config.fusion.init_depth_from=runs/ntu120_csub_depth

The recipe of configs/ntu_cs.py, trained on 53 of the 106 subjects and evaluated on the others. A data set that was
prepared with set-ups 1 to 32 serves this protocol, the other one of NTU RGB+D 120 and both of NTU RGB+D 60.

The paper reports no accuracy for it. Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import ntu_cs


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of NTU RGB+D 120, cross-subject: "rgb", "depth" or "fusion"."""
    config = ntu_cs.get_config(modality)
    config.data.train_split = "csub_train"
    config.data.eval_split = "csub_validation"
    return config
