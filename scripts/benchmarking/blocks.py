"""The time of each block of the network within a program: what a profile of one run says of its operations."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from jax.profiler import ProfileData

from rgbd_jax.models.spatial import INCEPTION_CHANNELS
from rgbd_jax.models.temporal import BRANCHES

# Scopes that the network and the training step name their operations by (`jax.named_scope`), as data goes through.
BLOCKS = (
    "inputs", "stem", *INCEPTION_CHANNELS, "frp", "projection", "recoupling", *(f"branch_{name}" for name in BRANCHES),
    "heads", "losses", "optimizer",
)  # fmt: skip
OTHER = "other"
_SCOPE = re.compile(r"\b(" + "|".join(BLOCKS) + r")\b")
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_CALLERS = ("while", "conditional", "call")  # their time is that of the operations within, which are listed too


def seconds_by_block(program: jax.stages.Compiled, run: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds of each block in one run of a program, "NAME, forward" and "NAME, backward".

    An operation belongs to the block that it, or the last of those that XLA fused in it, comes from. Operations that
    ran at the same time count each, so that the sum can be more than the run's time.

    Args:
        program: what is run.
        run: runs it once and waits until it is done.

    Raises:
        RuntimeError: the profile names no operation of the program.
    """
    scopes = dict(_INSTRUCTION.findall(program.as_text() or ""))
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (profile,) = Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(profile)).planes:
            for event in (event for line in plane.lines for event in line.events):
                operation = dict(event.stats).get("hlo_op")
                if operation and not str(operation).startswith(_CALLERS):
                    seconds[block_of(scopes.get(str(operation), ""))] += event.duration_ns / 1e9
    if not seconds:
        raise RuntimeError("this platform's profile names no operation of the program")
    return dict(sorted(seconds.items(), key=lambda entry: _place(entry[0])))


def block_of(scope: str) -> str:
    """Returns the block that an operation's scope names, and whether it is part of the gradient."""
    found = _SCOPE.search(scope)
    if not found:
        return OTHER
    return f"{found[1]}, {'backward' if 'transpose(' in scope else 'forward'}"


def _place(block: str) -> tuple[int, bool]:
    name = block.split(",")[0]
    return BLOCKS.index(name) if name in BLOCKS else len(BLOCKS), block.endswith("backward")
