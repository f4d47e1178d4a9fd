"""A small step of two stages, compiled for two TPUs and two GPUs: the programs that the tests of the plan read.

python -m tests.tools.small_program      # compiles it anew; needs `./scripts/setup.sh plan`
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rgbd_jax.tools.plan.isolated import run_isolated
from rgbd_jax.tools.plan.targets import Target, devices_of

TARGETS = {"v5e": Target("v5e", "2x1"), "H100": Target("H100", device_count=2)}
FOLDER = Path(__file__).parent / "programs"
LAYERS, CHANNELS, SIZE = 3, 64, 16
CLIPS = 2  # of a device

# What the estimates do not need: where in the source an operation comes from, and most of what the backend notes.
_TABLES = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n.*?\n\n", re.MULTILINE | re.DOTALL)
_KEPT = re.compile(r'"known_trip_count":\{"n":"\d+"\}|"estimated_cycles":"\d+"|"is_sync":\w+')


def compile_program(name: str) -> str:
    """Returns the optimised program for a target, without what the estimates do not need."""
    devices = devices_of(TARGETS[name])
    mesh, shape = Mesh(np.asarray(devices), ("data",)), jax.ShapeDtypeStruct
    split, whole = PartitionSpec("data"), PartitionSpec()
    specs = {"in_specs": (whole, whole, split), "out_specs": whole, "check_vma": False}
    arguments: list[Any] = [
        shape((3, 3, 64, CHANNELS), jnp.bfloat16),  # h w i o
        shape((LAYERS, CHANNELS, CHANNELS), jnp.bfloat16),  # depth c c
        shape((CLIPS * len(devices), SIZE, SIZE, 64), jnp.bfloat16),  # b h w i
    ]
    lowered = jax.jit(jax.shard_map(_step, mesh=mesh, **specs)).lower(*arguments)
    text = _TABLES.sub("", lowered.compile().as_text() or "")
    text = re.sub(r" stack_frame_id=\d+|,? (metadata={)?scheduling_name=\"[^\"]*\"(?(1)})|, sharding={[^}]*}", "", text)
    return re.sub(r"backend_config=(\{.*\})$", _shortened, text, flags=re.MULTILINE)


def _step(kernel: jax.Array, layers: jax.Array, x: jax.Array) -> Any:
    def loss(kernel, layers):
        with jax.named_scope("stem"):
            axes = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)  # b h w o
        with jax.named_scope("branch_small"):
            y, _ = jax.lax.scan(lambda y, layer: (jnp.tanh(y @ layer), None), y.mean((1, 2)), layers)
        return jnp.square(y.astype(jnp.float32)).sum()

    return jax.lax.psum(jax.grad(loss, (0, 1))(kernel, layers), "data")


def _shortened(match: re.Match[str]) -> str:
    return f"backend_config={{{','.join(_KEPT.findall(match[1]))}}}"


def write_programs() -> None:
    """Writes the programs for all targets."""
    from tests.tools.small_program import compile_program  # the other process cannot import it from __main__

    for name in TARGETS:
        text = run_isolated(f"compiling for {name}", True, compile_program, name)
        (FOLDER / f"{name}.hlo").write_text(text)


if __name__ == "__main__":
    write_programs()
