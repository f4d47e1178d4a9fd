r"""Your own clips: folders of frames, or videos, under RAW/rgb and RAW/depth (see datasets/rgbd_folder/README.md).

    python -m rgbd_jax.main --config configs/folder.py --workdir runs/mine --config.data.raw_dir=RAW
    python -m rgbd_jax.main --config configs/folder.py:depth --workdir runs/mine_depth --config.data.raw_dir=RAW
    python -m rgbd_jax.main --config configs/folder.py:fusion --workdir runs/mine_fusion --config.data.raw_dir=RAW \
        --config.fusion.init_rgb_from=runs/mine --config.fusion.init_depth_from=runs/mine_depth

The clips are checked and prepared once, under `--config.data.data_dir`, before the training starts. Every other setting
is the paper's network at 224x224 and 64 frames with the clean schedule; on one GPU use `--config.train.batch_size=8`.

Time and accuracy depend on the clips. A network trained from scratch needs thousands of them; with few, start from a
smaller one: `--config.model.width=0.25 --config.clip.size=112 --config.clip.frames=32`.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config for a folder of clips and "rgb", "depth" or "fusion"."""
    config = default_config(modality)
    config.data.dataset = "rgbd_folder"
    config.data.transforms.flip_probability = 0.0  # a flipped "swipe left" is a swipe right: raise it if that is fine
    return config
