"""Plans a training: what the compiler of the devices that are planned for estimates of the step.

    python -m rgbd_jax plan --config configs/ntu_cs.py --device_kind v5e --topology 4x4
    python -m rgbd_jax plan --config configs/ntu_cs.py --device_kind H100 --device_count 8
    python -m rgbd_jax plan --config configs/ntu_cs.py                                      # this machine

The training step is compiled for two or three batch sizes; nothing is run and no data are read. Every figure is the
compiler's estimate for one device. Other devices than this machine's need their compilers alone, no driver:
`./scripts/setup.sh plan`.
"""

from rgbd_jax.tools.plan.planning import plan
from rgbd_jax.tools.plan.tables import table
from rgbd_jax.tools.plan.targets import Target

__all__ = ["Target", "plan", "table"]
