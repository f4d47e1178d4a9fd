"""Plans a training: the compiler's estimates of a step on this machine's devices, and the largest batch that fits.

    python -m rgbd_jax plan --config configs/ntu_cs.py
    python -m rgbd_jax plan --config configs/ntu_cs.py --device_count 8      # simulated devices of the CPU

The training step is compiled for a few batch sizes; nothing is run and no data are read. Every number is the compiler's
estimate for one device. Loop bodies are counted once in FLOPs, bytes and collectives, so that microbatches, scanned
layers and the CPU's loops over clips make these lower bounds.
"""

import contextlib
import functools
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rgbd_jax.config import check_config, check_divisible
from rgbd_jax.modalities import STREAMS
from rgbd_jax.model import Model
from rgbd_jax.models.family import ScheduleValues
from rgbd_jax.parallel.mesh import make_mesh
from rgbd_jax.step import compile_train_step, state_shapes

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
# An asynchronous operation has its result's type at its end, NAME-done.
_INSTRUCTION = re.compile(rf"= (?P<type>.+?) (?P<kind>{COLLECTIVES})(?:-done)?\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+)(?P<bits>\d*)\w*\[(?P<shape>[\d,]*)\]")
# Machine code that is not optimised takes a quarter of the time and the same memory.
_CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}

log = logging.getLogger("rgbd_jax")


def plan(config: ConfigDict, num_classes: int | None, device_count: int = 0) -> dict[str, Any]:
    """Returns what a training step needs of each device, in bytes and FLOPs, and the largest batch; JSON-able.

    All devices of this machine are taken by default; a CPU simulates any number of them if JAX has not started yet.

    Raises:
        ValueError: the config cannot be used on so many devices, or there are fewer.
    """
    check_config(config)
    if num_classes is None:
        raise ValueError("config.model.num_classes is not set, and the data set is not prepared: set it or prepare it")
    devices = _devices(device_count)
    check_divisible(config, len(devices))
    step = functools.cache(functools.partial(compile_step, config, num_classes, devices))
    batch_size, limit = config.train.batch_size, _memory_of_each(devices)
    result, largest = step(batch_size), None
    if limit is not None:
        unit = len(devices) * config.train.microbatches
        largest = largest_batch(lambda size: step(size)["memory"]["total"], batch_size, unit, limit)
    fits = result["memory"]["total"] <= (math.inf if limit is None else limit)
    fields = ("modality", "train.batch_size", "train.microbatches", "sharding.parameter_shards", "model.dtype")
    flat = flatten_dict(config.to_dict(), sep=".")
    return {
        "device": {"kind": devices[0].device_kind, "count": len(devices), "memory": limit},
        "settings": {name: flat[name] for name in (*fields, *(name for name in flat if name.startswith("remat.")))},
        **result,
        "memory": {name: size for name, size in result["memory"].items() if size < math.inf},
        "fits": fits,
        "largest_batch": largest,
        "advice": [] if fits else _advice(config, devices, largest),
    }


def compile_step(config: ConfigDict, num_classes: int, devices: list[jax.Device], batch_size: int) -> dict[str, Any]:
    """Returns the number of parameters and the compiler's memory, FLOPs, bytes and collectives of a training step.

    The total memory is infinite where the compiler finds that the step does not fit and gives no number.
    """
    log.info("compiling the training step for a batch of %d ...", batch_size)
    model, mesh = Model(config, num_classes), make_mesh(config.sharding.parameter_shards, devices)
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    shapes, batch = state_shapes(model), batch_shapes(config, batch_size)
    train_step: Any = compile_train_step(model, mesh)
    lowered = train_step.lower(shapes, batch, ScheduleValues(number, number, number))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    try:
        program = lowered.compile(compiler_options=_CPU_OPTIONS if devices[0].platform == "cpu" else None)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        unknown: dict[str, Any] = {"flops": None, "bytes_accessed": None, "collectives": []}
        return {"parameters": parameters, "memory": {"total": math.inf}, **unknown}
    sizes, costs = program.memory_analysis(), program.cost_analysis() or {}
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,  # the rest reuses the arguments' memory
        "program": sizes.generated_code_size_in_bytes,
    }
    return {
        "parameters": parameters,
        "memory": {**memory, "total": sum(memory.values())},
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": collectives(program.as_text() or ""),
    }


def batch_shapes(config: ConfigDict, clips: int) -> dict[str, Any]:
    """Returns the shapes of a training batch of so many clips."""
    frames = jax.ShapeDtypeStruct((clips, config.clip.frames, config.clip.size, config.clip.size, 3), jnp.uint8)
    index = jax.ShapeDtypeStruct((clips,), jnp.int32)
    return {"frames": dict.fromkeys(STREAMS[config.modality], frames), "label": index, "record": index}


def collectives(program: str) -> list[dict[str, Any]]:
    """Returns the collectives of an optimised HLO program: `kind`, `operations`, `tensors` and `bytes` of results."""
    rows: dict[str, Counter[str]] = {}
    for instruction in _INSTRUCTION.finditer(program):
        row = rows.setdefault(instruction["kind"], Counter())
        row["operations"] += 1
        for array in _ARRAY.finditer(instruction["type"]):
            row["tensors"] += 1
            row["bytes"] += math.prod(map(int, filter(None, array["shape"].split(",")))) * int(array["bits"] or 8) // 8
    return [{"kind": kind, **row} for kind, row in rows.items()]


def largest_batch(need: Callable[[int], float], start: int, unit: int, limit: int) -> int:
    """Returns the largest batch found to fit in `limit` bytes: a multiple of `unit`, and 0 if none fits.

    Memory is nearly linear in the batch: two sizes predict it, and the prediction is compiled and corrected twice.
    """
    half = max(start // 2 // unit, 1) * unit
    points = {size: need(size) for size in (start, half if half < start else 2 * start)}
    for _ in range(3):
        known = sorted((size, needed) for size, needed in points.items() if needed < math.inf)
        guess = max(min(points) // 2 // unit, 1) * unit
        if len(known) > 1:
            (small, least), (large, most) = known[0], known[-1]
            guess = int(small + (limit - least) * (large - small) / (most - least)) // unit * unit
        if guess < unit or guess in points:
            break
        points[guess] = need(guess)
    return max((size for size, needed in points.items() if needed <= limit), default=0)


def _devices(count: int) -> list[jax.Device]:
    if count:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if not 0 <= count <= len(devices):
        found = f"this machine has {len(devices)} {devices[0].platform} devices"
        advice = "give at most as many, or set JAX_PLATFORMS=cpu for simulated ones"
        raise ValueError(f"--device_count={count}, but {found}: {advice}")
    return devices[: count or None]


def _memory_of_each(devices: list[jax.Device]) -> int | None:
    if devices[0].platform == "cpu":  # simulated devices share the machine's memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def _advice(config: ConfigDict, devices: list[jax.Device], largest: int | None) -> list[str]:
    clips = config.train.batch_size // len(devices)
    advice = [f"--config.train.batch_size={largest}, which fits"] if largest else []
    if config.train.microbatches < clips:
        advice.append(f"--config.train.microbatches={clips} (BatchNorm then sees one clip of each device at a time)")
    if devices[0].platform != "cpu":  # XLA's CPU compiler undoes it
        advice += [f"--config.remat.{name}=all" for name, value in config.remat.items() if value != "all"]
    if config.model.dtype != "bfloat16":
        advice.append("--config.model.dtype=bfloat16")
    if config.sharding.parameter_shards < len(devices):
        advice.append(f"--config.sharding.parameter_shards={len(devices)} (parameters and optimizer state only)")
    return [*advice, "a smaller --config.clip.size or --config.clip.frames"]


def table(result: dict[str, Any]) -> str:
    """Returns a plan as a table."""

    def shown(number: float | None, unit: float, name: str) -> str:
        return "unknown" if number is None else f"{number / unit:,.1f} {name}"

    mib = functools.partial(shown, unit=2**20, name="MiB")
    device, largest, advice = result["device"], result["largest_batch"], result["advice"]
    rows = [("parameters", f"{result['parameters']:,}"), ("memory of each device", "")]
    rows += [(f"  {name}", mib(size)) for name, size in result["memory"].items()]
    fits = "fits" if result["fits"] else "does not fit"
    rows.append(("  available", f"{mib(device['memory'])}: the step {fits}"))
    rows += [("" if number else "    lower it by", text) for number, text in enumerate(advice)]
    rows += [
        ("largest batch that fits", "unknown" if largest is None else str(largest)),
        ("FLOPs of a step", shown(result["flops"], 1e9, "GFLOP")),
        ("bytes accessed", mib(result["bytes_accessed"])),
    ]
    for row in result["collectives"]:
        rows.append((row["kind"], f"{row['operations']} operations, {row['tensors']} tensors, {mib(row['bytes'])}"))
    width = max(len(name) for name, _ in rows)
    settings = ", ".join(f"{name}={value}" for name, value in result["settings"].items())
    title = f"{device['count']} x {device['kind']}; {settings}\nThe compiler's estimates for one device:"
    return "\n".join([title, *(f"{name:{width}}  {value}".rstrip() for name, value in rows)])
