r"""UTD-MHAD, 27 actions, free to download (see datasets/utd_mhad/README.md).

    python -m rgbd_jax.main --config configs/utd_mhad.py --workdir runs/utd_rgb --config.data.raw_dir=UTD_MHAD
    python -m rgbd_jax.main --config configs/utd_mhad.py:depth --workdir runs/utd_depth --config.data.raw_dir=UTD_MHAD
    python -m rgbd_jax.main --config configs/utd_mhad.py:fusion --workdir runs/utd_fusion \
        --config.fusion.init_rgb_from=runs/utd_rgb --config.fusion.init_depth_from=runs/utd_depth

Half of the 861 clips, of odd subjects, to train on: few for a network of this size, so that 32 frames of 112x112 and
half the width are the default; with weights of Jester (`--config.init_from`) set
`--config.model.width=1 --config.clip.size=224 --config.clip.frames=64`.

Neither the accuracy nor the time has been measured with this package.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of UTD-MHAD for "rgb", "depth" or "fusion"."""
    config = default_config(modality)
    config.data.dataset = "utd_mhad"
    config.data.transforms.resize = (160, 120)
    config.data.transforms.crop_size = 112
    config.data.transforms.flip_probability = 0.0  # some actions differ only by their direction
    config.clip.frames = 32
    config.clip.size = 112
    config.model.width = 0.5
    config.model.branch_frames = (8, 16, 24)
    config.train.batch_size = 16
    config.eval.batch_size = 16
    return config
