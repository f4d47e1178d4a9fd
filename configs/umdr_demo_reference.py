r"""UMDR and its recipe on few clips of the demo, small enough to train the PyTorch reference beside it.

    python -m rgbd_jax.main --config configs/umdr_demo_reference.py --workdir runs/umdr_demo_reference
    python scripts/train_beside.py --reference ../MotionRGBD-PAMI --workdir runs/umdr_beside \
        --config configs/umdr_demo_reference.py

As in configs/demo_reference.py, with three layers in each transformer instead of six, without mixing, which the
reference's fusion draws for each modality anew. The accuracy has not been measured.
"""

from ml_collections import ConfigDict
from rgbd_jax.configs import demo_reference

from rgbd_jax.config import umdr_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of UMDR for "rgb", "depth" or "fusion"."""
    small = demo_reference.get_config(modality)
    config = umdr_config(demo_reference.get_config, f"{modality}_16")
    config.mixing = small.mixing
    config.model.temporal_blocks = small.model.temporal_blocks
    config.train.epochs = small.train.epochs
    config.train.batch_size = 16
    config.eval.batch_size = 24  # 1.5 times, as the reference has it
    return config
