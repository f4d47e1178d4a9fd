r"""The demo: 12 rendered hand motions, and a network small enough for a laptop.

    python -m rgbd_jax.main --config configs/demo.py --workdir runs/demo
    python -m rgbd_jax.main --config configs/demo.py:depth --workdir runs/demo_depth
    python -m rgbd_jax.main --config configs/demo.py:fusion --workdir runs/demo_fusion \
        --config.fusion.init_rgb_from=runs/demo --config.fusion.init_depth_from=runs/demo_depth

`./scripts/demo.sh fusion` runs all three. Each modality alone can reach 91.7 %, both together 100 %.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of the demo for "rgb", "depth" or "fusion"."""
    config = default_config(modality)
    config.clip.frames = 16
    config.clip.size = 64

    config.data.dataset = "rgbd_demo"
    config.data.workers = 2
    config.data.depth.range_mm = (500, 2500)
    config.data.transforms.resize = (72, 72)
    config.data.transforms.crop_size = 64
    config.data.transforms.rotation_probability = 0.0
    config.data.transforms.flip_probability = 0.0  # a flipped swipe is another swipe

    config.model.width = 0.25
    config.model.branch_frames = (4, 8, 12)
    config.model.temporal_blocks = 2
    config.model.recoupling_hidden = 64
    config.model.frp_window = 4
    config.model.batch_norm_momentum = 0.05

    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.05
    config.schedule.learning_rate = 2e-3
    config.schedule.warm_up_epochs = 2
    config.loss.sharpness = False
    config.train.batch_size = 20
    config.train.epochs = 16 if modality == "depth" else 20
    config.eval.batch_size = 48
    if modality == "fusion":  # both modalities are trained already
        config.schedule.learning_rate = 1e-3
        config.schedule.warm_up_epochs = 1
        config.train.epochs = 5
    return config
