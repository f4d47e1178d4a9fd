"""Compiles a step, or any function, for a target, and reads the compiler's estimates from the program.

It does so in this process, which for a device that this machine does not have needs the environment variables that
`rgbd_jax.tools.plan.isolated` sets: the CPU is then the only device, and no driver is asked for.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from rgbd_jax.config import check_divisible
from rgbd_jax.modalities import training_modalities
from rgbd_jax.model import Model
from rgbd_jax.models.family import ScheduleValues
from rgbd_jax.parallel.mesh import by_clip_sharding, make_mesh, replicated, state_sharding
from rgbd_jax.step import compile_evaluation_step, compile_train_step, state_shapes
from rgbd_jax.tools.plan import gpu, hlo, program, tpu
from rgbd_jax.tools.plan.targets import Chip, Target, chip_of, devices_of, kind_of, memory_of

# Machine code that is not optimised takes a quarter of the time and the same memory.
_CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
_ON_CHIP = re.compile(r"memory space [vs]mem")  # a kernel needs too much, not the step
_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]) of|HLO temporaries \(([\d.]+)([KMGT])\)")


@dataclasses.dataclass(frozen=True)
class Job:
    """A step to compile."""

    config: ConfigDict
    num_classes: int
    target: Target
    batch_size: int  # clips on all devices
    step: str = "train"  # or "eval"


def estimate_step(job: Job) -> dict[str, Any]:
    """Compiles a step and returns the compiler's estimates for one device; JSON-able.

    Where the compiler finds that the step does not fit, `total_bytes` is all that it reports, or None.

    Raises:
        ValueError: the batch cannot be split over the devices, or there are no such devices.
    """
    devices = devices_of(job.target)
    config = job.config.copy_and_resolve_references()
    config.train.batch_size = config.eval.batch_size = job.batch_size
    check_divisible(config, len(devices), training=job.step == "train")
    clips = job.batch_size // len(devices)
    kind = job.target.kind or kind_of(devices[0])
    known = {
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "device_count": len(devices),
        "device_memory": memory_of(job.target, devices),
        "clips_per_device": clips,
        "parameters": _model(job).num_parameters,
    }
    try:
        compiled = compile_step(job, devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or _ON_CHIP.search(str(error)):
            raise
        return {**known, "total_bytes": _needed(str(error))}
    return {**known, **estimates(compiled, kind, clips)}


def compile_step(job: Job, devices: list[Any]) -> Any:
    """Returns the compiled step."""
    model, mesh = _model(job), make_mesh(job.config.sharding.parameter_shards, devices)
    shapes = state_shapes(model)
    state = jax.tree.map(_placed, shapes, state_sharding(shapes, mesh))
    batch = batch_shapes(job.config, job.batch_size, mesh)
    number: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    schedule = ScheduleValues(number, number, number)
    if job.step == "train":
        lowered = compile_train_step(model, mesh).lower(state, batch, schedule)
    else:
        batch["mask"] = jax.ShapeDtypeStruct((job.batch_size,), jnp.bool_, sharding=by_clip_sharding(mesh))
        lowered = compile_evaluation_step(model, mesh).lower(state.params, state.batch_stats, batch, schedule)
    return lowered.compile(compiler_options=_CPU_OPTIONS if devices[0].platform == "cpu" else None)


def compile_function(function: Callable[..., Any], shapes: Any, target: Target) -> Any:
    """Returns a function of arrays, compiled for the first device of a target; `shapes` are its arguments."""
    here = replicated(make_mesh(1, devices_of(target)[:1]))
    placed = jax.tree.map(lambda leaf: _placed(leaf, here), shapes)
    return jax.jit(function).lower(*placed).compile()


def batch_shapes(config: ConfigDict, clips: int, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes of a training batch of so many clips, split over the mesh."""

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=by_clip_sharding(mesh))

    frames = array((clips, config.clip.frames, config.clip.size, config.clip.size, 3), jnp.uint8)  # b t h w 3
    index = array((clips,), jnp.int32)  # b
    return {"frames": dict.fromkeys(training_modalities(config), frames), "label": index, "record": index}


def estimates(compiled: Any, kind: str, clips: int) -> dict[str, Any]:
    """Returns the compiler's estimates of a program on one device, for a step of so many clips a device; JSON-able.

    Without a device `kind`, what depends on it is left out.
    """
    sizes, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    memory = {
        "argument_bytes": sizes.argument_size_in_bytes,
        "temp_bytes": sizes.temp_size_in_bytes,
        "output_bytes": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,  # the rest reuses the arguments' memory
        "program_bytes": sizes.generated_code_size_in_bytes,
    }
    parsed = hlo.parse(compiled.as_text() or "")
    result = {
        **memory,
        "total_bytes": sum(memory.values()),
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": program.collectives(parsed),
        "largest_temporaries": program.largest_temporaries(parsed),
    }
    if kind:
        chip = chip_of(kind)
        result |= _of_tpu(parsed, chip, clips, result) if chip.platform == "tpu" else _of_gpu(parsed, chip, clips)
    return result


def _of_tpu(parsed: hlo.Program, chip: Chip, clips: int, result: dict[str, Any]) -> dict[str, Any]:
    cycles = tpu.cycles_by_stage(parsed)
    seconds = sum(cycles.values()) / chip.clock
    return {
        "million_cycles_per_clip": sum(cycles.values()) / 1e6 / clips,
        "ms_per_clip": seconds * 1e3 / clips,
        "utilisation": result["flops"] / (seconds * chip.peak["bfloat16"]) if seconds and result["flops"] else None,
        "uncounted": tpu.uncounted(parsed),
        "stages": {stage: count / 1e6 / clips for stage, count in cycles.most_common()},
    }


def _of_gpu(parsed: hlo.Program, chip: Chip, clips: int) -> dict[str, Any]:
    costs = gpu.costs_by_stage(parsed, chip)
    whole = sum(costs.values(), gpu.Cost())
    stages = {
        stage: {"gigabytes": cost.size / 1e9, "bound_ms_per_clip": cost.bound * 1e3 / clips, "kernels": cost.kernels}
        for stage, cost in costs.items()
    }
    return {
        "flops": whole.flops,
        "bytes_accessed": whole.size,
        "gigabytes": whole.size / 1e9,
        "bound_ms_per_clip": whole.bound * 1e3 / clips,
        "kernels": whole.kernels,
        "utilisation": whole.busy / whole.bound if whole.bound else None,
        "stages": dict(sorted(stages.items(), key=lambda item: -item[1]["bound_ms_per_clip"])),
    }


def _needed(message: str) -> float | None:
    """Returns the bytes that a TPU's compiler reports for a program that does not fit."""
    found = _NEEDED.search(message)
    if not found:
        return None
    number, unit = (part for part in found.groups() if part)
    return float(number) * 2 ** (10 * (1 + "KMGT".index(unit)))


def _model(job: Job) -> Model:
    config = job.config.copy_and_resolve_references()
    if job.target.kind and config.model.operations == "auto":
        config.model.operations = chip_of(job.target.kind).platform
    return Model(config, job.num_classes)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
