r"""Lists what devices send each other in a step of the training, or of the evaluation, as XLA compiles it for them.

    python scripts/list_collectives.py --devices 8,64,256
    python scripts/list_collectives.py --devices 8,256 --config configs/ntu_cs.py --config.clip.size=64 --json
    python scripts/list_collectives.py --evaluation

The devices are simulated ones of the CPU, each number in a process of its own; nothing is run. A config's size and
number of frames change the time of compiling, not what is sent. The table goes to stdout, with `--json` one JSON object
instead. An operation in a loop (`config.train.microbatches`) counts once.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "Config file, with the stream after a colon.")
_DEVICES = flags.DEFINE_list("devices", ["8", "64", "256"], "Numbers of devices.")
_EVALUATION = flags.DEFINE_bool("evaluation", False, "List those of the evaluation of a batch instead.")
_CLIPS = flags.DEFINE_integer("clips", 1, "Clips of each device.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 60, "Number of classes, if the config does not say.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
_HERE = flags.DEFINE_bool("here", False, "Compile for this process's devices (what the script starts itself with).")

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_INSTRUCTION = re.compile(rf"= (?P<type>.+?) (?P<kind>{KINDS})\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+)(?P<bits>\d*)\[(?P<shape>[\d,]*)\]")


def main(argv: list[str]) -> None:
    """Compiles for every number of devices and prints what the programs send."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _HERE.value:
        print(json.dumps(_listed()))
        return
    found = {int(count): _in_a_process(int(count)) for count in _DEVICES.value}
    if _JSON.value:
        print(json.dumps(found))
        return
    print(f"{'devices':>7}  {'kind':20} {'for':10} {'tensors':>7} {'bytes':>13}")
    for count, listed in found.items():
        for row in listed["sent"]:
            print(f"{count:7}  {row['kind']:20} {row['purpose']:10} {row['tensors']:7} {row['bytes']:13,}")
        operations = ", ".join(f"{number} {kind}" for kind, number in listed["operations"].items())
        print(f"{count:7}  in {operations} operations; compiled in {listed['seconds']:.0f} s")


def _in_a_process(count: int) -> dict:
    """Returns what `_listed` finds in a process with so many simulated devices."""
    options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": options, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *sys.argv, "--here"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"compiling for {count} devices failed with exit status {done.returncode}, as told above")
    return json.loads(done.stdout.splitlines()[-1])


def _listed() -> dict:
    """Compiles the step for this process's devices; returns what it sends, and the seconds that compiling took."""
    import jax
    import jax.numpy as jnp

    from rgbd_jax.parallel.mesh import make_mesh, split_by_clip, state_sharding
    from rgbd_jax.parallel.sharded_step import parallel_evaluation_step, parallel_train_step, spread_over
    from rgbd_jax.step import ScheduleValues, Stream
    from rgbd_jax.tools.planning.plan import batch_shapes, gradient_lengths, purpose

    config, devices = _CONFIG.value, jax.device_count()
    shards = config.sharding.parameter_shards
    mesh = make_mesh(shards)
    stream = Stream(config, config.model.num_classes or _CLASSES.value, spread_over(mesh))

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(placed, stream.shapes(), state_sharding(stream.shapes(), mesh))
    batch = jax.tree.map(lambda leaf: placed(leaf, split_by_clip(mesh)), batch_shapes(config, _CLIPS.value * devices))
    moment = ScheduleValues(*(jnp.zeros((), jnp.float32) for _ in range(3)))
    started = time.monotonic()
    if _EVALUATION.value:
        mask = placed(jax.ShapeDtypeStruct(batch["label"].shape, bool), split_by_clip(mesh))
        step = cast(jax.stages.Wrapped, parallel_evaluation_step(stream, mesh))
        lowered = step.lower(state.params, state.batch_stats, {**batch, "mask": mask}, moment)
    else:
        step = cast(jax.stages.Wrapped, parallel_train_step(stream, mesh))
        lowered = step.lower(state, batch, moment)
    program = lowered.compile().as_text()
    seconds = time.monotonic() - started
    assert program is not None, "this platform does not show its programs"

    lengths = gradient_lengths(state.params, shards)
    rows: dict[tuple[str, str], dict] = {}
    operations: Counter[str] = Counter()
    for kind, arrays in collectives(program):
        operations[kind] += 1
        for shape, itemsize in arrays:
            key = (kind, "scores" if _EVALUATION.value else purpose(kind, shape, lengths))
            row = rows.setdefault(key, {"kind": kind, "purpose": key[1], "tensors": 0, "bytes": 0})
            row["tensors"] += 1
            whole = shards if kind == "reduce-scatter" else 1  # its result is a part of what is sent
            row["bytes"] += math.prod(shape) * itemsize * whole
    return {"seconds": round(seconds, 1), "operations": dict(operations), "sent": list(rows.values())}


def collectives(text: str) -> Iterator[tuple[str, list[tuple[tuple[int, ...], int]]]]:
    """Yields the kind of each collective operation in a program's text, and shape and bytes an element of its results.

    Args:
        text: an optimised HLO program.
    """
    for line in text.splitlines():
        found = _INSTRUCTION.search(line)
        if found:
            yield (
                found["kind"],
                [
                    (tuple(int(length) for length in array["shape"].split(",") if length), int(array["bits"] or 8) // 8)
                    for array in _ARRAY.finditer(found["type"])
                ],
            )


if __name__ == "__main__":
    app.run(main)
