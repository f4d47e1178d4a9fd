"""The plan of a training: the estimates of its step, the largest batch that fits, and what to lower if it does not."""

import math
from collections.abc import Callable
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rgbd_jax.config import check_config
from rgbd_jax.tools.plan import cache
from rgbd_jax.tools.plan.compilation import Job, estimate_step
from rgbd_jax.tools.plan.isolated import run_isolated
from rgbd_jax.tools.plan.targets import Target, check_installed

# Of the memory that a step can use, this share is left free: sizes that are not compiled are predicted, and what GPUs'
# libraries choose when a step first runs needs workspace that no compiler counts.
MARGIN = 0.05


def plan(config: ConfigDict, num_classes: int | None, target: Target) -> dict[str, Any]:
    """Returns what a training step needs of each device of a target, and the largest batch; JSON-able.

    Raises:
        ValueError: the config cannot be used on these devices, or a compiler is missing.
        MemoryError: a compiler ran out of this machine's memory.
        ChildProcessError: a compiler failed.
    """
    check_config(config)
    if num_classes is None:
        raise ValueError("config.model.num_classes is not set, and the data set is not prepared: set it or prepare it")
    check_installed(target)

    def estimate(batch_size: int) -> dict[str, Any]:
        return estimated(Job(config, num_classes, target, batch_size))

    first = estimate(config.train.batch_size)
    kind, platform = target.kind or first["device"], first["platform"]
    count, memory = first["device_count"], first["device_memory"]
    available = None if memory is None else memory * (1 - MARGIN)

    def need(batch_size: int) -> float:
        total = (first if batch_size == config.train.batch_size else estimate(batch_size))["total_bytes"]
        return math.inf if total is None else total

    largest, compiled = None, False
    if available is not None:
        unit = count * config.train.microbatches
        largest, compiled = largest_batch(need, config.train.batch_size, unit, available)
    fits = need(config.train.batch_size) <= (math.inf if available is None else available)
    fields = ("modality", "train.batch_size", "train.microbatches", "sharding.parameter_shards", "model.dtype")
    flat = flatten_dict(config.to_dict(), sep=".")
    return {
        "device": {"kind": kind, "count": count, "memory": memory},
        "settings": {name: flat[name] for name in (*fields, *(name for name in flat if name.startswith("remat.")))},
        "fits": fits,
        "advice": [] if fits else _advice(config, platform, count, largest),
        "compiled": {**first, "largest_batch": largest, "largest_batch_was_compiled": compiled},
    }


def estimated(job: Job) -> dict[str, Any]:
    """Returns the estimates of a step, from the cache or from its compiler; errors are those of `run_isolated`."""
    if (known := cache.read(job)) is not None:
        return known
    step = "training" if job.step == "train" else "evaluation"
    what = f"compiling the {step} step for {job.target.name}, a batch of {job.batch_size}"
    estimates = run_isolated(what, bool(job.target.kind), estimate_step, job)
    cache.write(job, estimates)
    return estimates


def largest_batch(need: Callable[[int], float], start: int, unit: int, limit: float) -> tuple[int, bool]:
    """Returns the largest batch found to fit in `limit` bytes, and whether its need was asked for or is predicted.

    It is a multiple of `unit`, and 0 if none fits. Memory is nearly linear in the batch: two sizes predict a third,
    which is asked for too. If the third does not fit, the largest is predicted again, from those that are known.
    """
    needs = {start: need(start)}
    if needs[start] <= limit or start >= 2 * unit:
        second = 2 * start if needs[start] <= limit else start // 2 // unit * unit
        needs[second] = need(second)
    predicted = _predicted(needs, unit, limit)
    if predicted and predicted not in needs:
        needs[predicted] = need(predicted)
        if needs[predicted] > limit:
            predicted = _predicted(needs, unit, limit)
    fitting = max((size for size, needed in needs.items() if needed <= limit), default=0)
    return max(fitting, predicted), predicted <= fitting


def _predicted(needs: dict[int, float], unit: int, limit: float) -> int:
    """Returns the largest multiple of `unit` that fits by the line through the two known sizes nearest to the limit."""
    known = sorted((abs(needed - limit), size) for size, needed in needs.items() if needed < math.inf)
    too_large = [size for size, needed in needs.items() if needed > limit]
    if len(known) < 2:
        return 0
    small, large = sorted(size for _, size in known[:2])
    slope = (needs[large] - needs[small]) / (large - small)
    if slope <= 0:
        return 0
    size = int(small + (limit - needs[small]) / slope) // unit * unit
    return max(min([size, *(other - unit for other in too_large)]), 0)


def _advice(config: ConfigDict, platform: str, count: int, largest: int | None) -> list[str]:
    clips = config.train.batch_size // count
    advice = [f"--config.train.batch_size={largest}, which fits"] if largest else []
    if config.train.microbatches < clips:
        advice.append(f"--config.train.microbatches={clips} (BatchNorm then sees one clip of each device at a time)")
    if platform != "cpu":  # XLA's CPU compiler undoes it
        advice += [f"--config.remat.{name}=all" for name, value in config.remat.items() if value != "all"]
    if config.model.dtype != "bfloat16":
        advice.append("--config.model.dtype=bfloat16")
    if config.sharding.parameter_shards < count:
        advice.append(f"--config.sharding.parameter_shards={count} (parameters and optimizer state only)")
    if platform == "gpu":
        advice.append("the environment variable XLA_CLIENT_MEM_FRACTION=0.9 (JAX reserves 0.75 of a GPU's memory)")
    return [*advice, "a smaller --config.clip.size or --config.clip.frames"]
