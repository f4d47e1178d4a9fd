"""The stages of the network and of the training step, by which operations are grouped."""

import re

from rgbd_jax.models.spatial import INCEPTION_CHANNELS
from rgbd_jax.models.temporal import BRANCHES

# The scopes that the network and the training step name their operations by (`jax.named_scope`), in the order of the
# data.
STAGES = [
    "inputs",
    "stem",
    *INCEPTION_CHANNELS,
    "frp",
    "projection",
    "recoupling",
    *(f"branch_{name}" for name in (*BRANCHES, "transformers")),
    "heads",
    "losses",
    "optimizer",
    "other",
]
_SCOPE = re.compile(r"\b(" + "|".join(STAGES[:-1]) + r")\b")


def stage_of(op_name: str) -> str:
    """Returns the stage that an operation's scopes name, and whether it is part of the gradient: "stem, backward"."""
    found = _SCOPE.search(op_name)
    return f"{found[1] if found else 'other'}, {'backward' if 'transpose(' in op_name else 'forward'}"
