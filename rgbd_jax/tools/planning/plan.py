"""What a training needs of its devices, calculated from the traced step: nothing is compiled, no data are read.

Memory is what the step stores if XLA fuses what is cheap to compute again (see `traced_memory`), and an allowance for
what XLA takes beyond that. Times are lower bounds: what the devices would need if nothing but arithmetic, memory or
links held them up.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from rgbd_jax.config_rules import check_config, check_divisible
from rgbd_jax.modalities import MODALITIES, STREAMS
from rgbd_jax.models.mixing import enabled
from rgbd_jax.parallel.mesh import REPLICAS, SHARDS, sharded_axis
from rgbd_jax.parallel.sharded_step import parallel_train_step, spread_over
from rgbd_jax.step import Batch, ScheduleValues, Stream, with_partners
from rgbd_jax.tools.planning.device_kinds import USABLE_SHARE, DeviceKind, device_kind
from rgbd_jax.tools.planning.traced import Message, Program
from rgbd_jax.tools.planning.traced_memory import Storage, held_for

# XLA takes up to so many times what is calculated: it fuses less, and memory comes in pieces (docs/scaling.md).
ALLOWANCE = 2
# The forward pass is traced with so many.
FORWARD_CLIPS = 2
_NUMBER = jax.ShapeDtypeStruct((), jnp.float32)
_MOMENT = ScheduleValues(_NUMBER, _NUMBER, _NUMBER)  # type: ignore[arg-type]  # of shapes


def plan(config: ConfigDict, num_classes: int | None, kind: str = "", device_count: int = 0) -> dict:
    """Returns what a training with `config.train.batch_size` clips needs on devices of a kind, and what would fit.

    Args:
        config: the experiment's config.
        num_classes: number of classes.
        kind: a name of `device_kinds.KINDS`; this machine's kind if empty.
        device_count: number of devices; this machine's if 0.

    Returns:
        Plain numbers by name, fit for JSON; `table.table` shows them. Bytes, FLOPs (a multiplication and an
        addition are two) and seconds; memory is that of one device.

    Raises:
        ValueError: the config cannot be used on so many devices, or the kind is not known; names the field or flag.
    """
    check_config(config)
    if num_classes is None:
        raise ValueError("config.model.num_classes is not set, and there is no prepared data set to tell; set it")
    if device_count < 0:
        raise ValueError(f"--device_count={device_count}: expected at least 1, or 0 for this machine's number")
    known = device_kind(kind)
    return plan_of(TracedStep(config, num_classes, device_count or jax.device_count(), known.lanes), known)


class TracedStep:
    """A training step on one of several devices, traced.

    Args:
        config: the experiment's config, checked.
        num_classes: number of classes.
        device_count: number of devices.
        lanes: to what arrays are padded in memory (see `traced.Program`).

    Raises:
        ValueError: batch or parameters do not divide among the devices; names the field.
    """

    def __init__(self, config: ConfigDict, num_classes: int, device_count: int, lanes: int = 1):
        check_divisible(config, device_count)
        shards = config.sharding.parameter_shards
        if device_count % shards:
            raise ValueError(
                f"config.sharding.parameter_shards={shards} does not divide the number of devices, {device_count}"
            )
        self.config, self.devices, self.lanes = config, device_count, lanes
        self.clips = config.train.batch_size // device_count  # of one device
        self.parts = config.train.microbatches
        self.mesh = AbstractMesh((device_count // shards, shards), (REPLICAS, SHARDS))
        self.stream = Stream(config, num_classes, spread_over(self.mesh))  # type: ignore[arg-type]  # abstract is enough
        self.shapes = self.stream.shapes()

    @functools.cached_property
    def program(self) -> Program:
        """What one device does in a step."""
        # From two numbers of clips follow all others; one clip alone is traced otherwise, its axis being of length 1.
        counts = 2 * self.parts, 3 * self.parts
        return Program((self._trace(counts[0]), self._trace(counts[1])), counts, self.lanes)

    @functools.cached_property
    def storage(self) -> Storage:
        """When its values lie in memory."""
        return Storage(self.program)

    @functools.cached_property
    def forward(self) -> Program:
        """The forward pass of FORWARD_CLIPS clips; its results are the loss and what the backward pass needs."""
        forward = functools.partial(_forward, Stream(self.config, self.stream.num_classes))
        batch = batch_shapes(self.config, FORWARD_CLIPS)
        traced = jax.make_jaxpr(forward)(self.shapes.params, self.shapes.batch_stats, batch, _MOMENT).jaxpr
        return Program((traced, traced), lanes=self.lanes)

    def _trace(self, clips: int) -> core.Jaxpr:
        """Returns what one device does with so many clips."""
        step = parallel_train_step(self.stream, self.mesh)  # type: ignore[arg-type]  # abstract is enough to trace
        traced = jax.make_jaxpr(step)(self.shapes, batch_shapes(self.config, clips * self.devices), _MOMENT)
        (call,) = traced.jaxpr.eqns
        whole = call.params["jaxpr"].jaxpr
        on_each = [equation.params["jaxpr"] for equation in whole.eqns if equation.primitive.name == "shard_map"]
        return on_each[0] if on_each else whole

    def memory(self, clips: int) -> dict[str, int]:
        """Returns the bytes that one device holds with so many clips, by what they are, and all together."""
        shards = self.config.sharding.parameter_shards
        batch = jax.eval_shape(functools.partial(with_partners, config=self.config), batch_shapes(self.config, clips))
        kept = self.kept * clips // (FORWARD_CLIPS * self.parts)
        gradient = _bytes(self.shapes.params)
        parts = {
            "parameters": _bytes(self.shapes.params, shards),
            "optimizer_state": _bytes(self.shapes.optimizer_state, shards),
            "batch_statistics": _bytes(self.shapes.batch_stats),
            "batch": _bytes(batch),
            "kept": kept,
            "gradient": gradient,
            "transient": max(self.storage.peak(clips) - kept - gradient, 0),
        }
        calculated = sum(parts.values())
        allowance = (ALLOWANCE - 1) * (kept + gradient + parts["transient"])
        return {**parts, "calculated": calculated, "allowance": allowance, "total": calculated + allowance}

    @functools.cached_property
    def kept(self) -> int:
        """The bytes that FORWARD_CLIPS clips keep between the forward and the backward pass."""
        return held_for(self.forward, self.forward.outputs[1:])

    def largest_batch(self, usable: int) -> int:
        """Returns the most clips, over all devices, with which a step takes at most so many bytes of each device."""

        def fits(parts: int) -> bool:
            return self.memory(parts * self.parts)["total"] <= usable

        fitting, beyond = 0, 1
        while fits(beyond):
            fitting, beyond = beyond, 2 * beyond
        while beyond - fitting > 1:
            middle = (fitting + beyond) // 2
            fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
        return fitting * self.parts * self.devices

    def messages(self) -> list[tuple[str, Message]]:
        """Returns what one device sends in a step, each with what it is for."""
        axes = (REPLICAS, SHARDS)
        lengths = gradient_lengths(self.shapes.params, self.config.sharding.parameter_shards)
        sent = [(purpose(message.kind, message.shape, lengths), message) for message in self.program.messages()]
        if enabled(self.config.mixing):  # XLA sends a whole batch in reversed order
            for frames in batch_shapes(self.config, self.clips)["frames"].values():
                sent.append(("mixing", Message("collective-permute", frames.shape, 1, axes)))
        return [(purpose, message) for purpose, message in sent if self.group(message) > 1]

    def group(self, message: Message) -> int:
        """Returns how many devices take part."""
        return math.prod(self.mesh.shape[axis] for axis in message.axes)


def purpose(kind: str, shape: tuple[int, ...], gradient_lengths: set[int]) -> str:
    """Returns what a collective operation of the training step is for, as its kind and shape tell.

    Args:
        kind: "all-reduce", "all-gather", "reduce-scatter" or another.
        shape: the shape of what is sent.
        gradient_lengths: lengths of the vectors that the gradient is reduced as (see `gradient_lengths`).
    """
    if kind != "all-reduce":
        return {"all-gather": "parameters", "reduce-scatter": "gradient"}.get(kind, "mixing")
    if len(shape) == 2:
        return "BatchNorm"
    return "gradient" if math.prod(shape) in gradient_lengths else "figures"


def gradient_lengths(params: Any, shards: int) -> set[int]:
    """Returns the lengths of the vectors that the gradient is reduced as: of whole tensors, and of parts of others."""
    lengths = {True: 0, False: 0}
    for leaf in jax.tree.leaves(params):
        split = sharded_axis(leaf.shape, shards) is not None
        lengths[split] += leaf.size // (shards if split else 1)
    return set(lengths.values()) - {0}


def plan_of(step: TracedStep, kind: DeviceKind) -> dict:
    """Returns the plan (see `plan`) of a traced step on devices of a kind."""
    config, clips = step.config, step.clips
    memory_of_each = kind.memory_of_each(step.devices)
    usable = int(USABLE_SHARE * memory_of_each)
    memory = step.memory(clips)
    largest = step.largest_batch(usable)
    training = step.program.flops(clips)
    return {
        "device": {
            "kind": kind.name,
            "count": step.devices,
            "memory": memory_of_each,
            "usable": usable,
            "source": kind.source,
        },
        "training": {
            "modality": config.modality,
            "batch_size": config.train.batch_size,
            "clips_per_device": clips,
            "microbatches": step.parts,
            "parameter_shards": config.sharding.parameter_shards,
            "dtype": config.model.dtype,
            "remat": dict(config.remat.items()),
        },
        "parameters": _parameters(step.shapes.params),
        "flops": {
            "forward_per_clip": step.forward.flops() // FORWARD_CLIPS,
            "training_per_clip": training // clips,
            "step_per_device": training,
        },
        "memory": {**memory, "fits": memory["total"] <= usable},
        "largest_batch": {
            "clips": largest,
            "clips_per_device": largest // step.devices,
            "total": step.memory(largest // step.devices)["total"] if largest else None,
        },
        "advice": [] if memory["total"] <= usable else _advice(config, kind, clips, largest),
        "sent": _sent(step),
        "seconds_at_least": _seconds(step, kind),
    }


def _parameters(params: Any) -> dict:
    """Returns numbers and bytes of all parameters and of those of each part of the network, the heads together."""
    parts: dict[str, list[Any]] = {}
    for name, part in params.items():
        if name in MODALITIES:
            for inner, tensors in part.items():
                parts.setdefault(f"{name} {inner}", []).append(tensors)
        else:
            parts.setdefault("heads" if name.startswith("head_") else name, []).append(part)
    counted = {name: {"count": _count(part), "bytes": _bytes(part)} for name, part in parts.items()}
    return {"count": _count(params), "bytes": _bytes(params), "parts": counted}


def _advice(config: ConfigDict, kind: DeviceKind, clips: int, largest: int) -> list[str]:
    """Returns what of a config could be changed so that a step needs less memory."""
    advice = []
    if largest:
        advice.append(f"--config.train.batch_size={largest}, which fits")
    if config.train.microbatches < clips:
        advice.append(f"--config.train.microbatches={clips} (BatchNorm then sees one clip of each device at a time)")
    for name, what in config.remat.items():
        if what != "all" and kind.name != "cpu":  # XLA undoes it on CPUs
            advice.append(f"--config.remat.{name}=all")
    if config.model.dtype != "bfloat16":
        advice.append("--config.model.dtype=bfloat16")
    if config.sharding.parameter_shards == 1:
        advice.append("--config.sharding.parameter_shards above 1 (parameters and optimizer state alone)")
    return [*advice, "smaller config.clip.size or config.clip.frames"]


def _sent(step: TracedStep) -> list[dict]:
    """Returns what one device sends in a step: kind, purpose, number, and bytes of the whole tensors."""
    rows: dict[tuple[str, str], dict] = {}
    for purpose, message in step.messages():
        row = rows.setdefault(
            (message.kind, purpose), {"kind": message.kind, "purpose": purpose, "number": 0, "bytes": 0}
        )
        row["number"] += message.times
        row["bytes"] += message.times * message.bytes
    return list(rows.values())


def _seconds(step: TracedStep, kind: DeviceKind) -> dict[str, float | None]:
    """Returns lower bounds of a step's time by arithmetic, by memory and by links; None where no peak is known."""
    peak = kind.peak(step.config.model.dtype)
    link_bytes = 0.0
    for _, message in step.messages():
        others = (step.group(message) - 1) / step.group(message)
        share = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(message.kind, others)
        link_bytes += message.times * message.bytes * share
    return {
        "arithmetic": None if peak is None else step.program.flops(step.clips) / peak,
        "memory": None if kind.bandwidth is None else step.storage.traffic(step.clips) / kind.bandwidth,
        "links": None if kind.link is None else link_bytes / kind.link,
    }


def _forward(
    stream: Stream, params: Any, batch_stats: Any, batch: Batch, moment: ScheduleValues
) -> tuple[Any, list[Any]]:
    """Returns the loss of a part of a batch, and what is kept to compute the gradient."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), batch["record"])
    clip, heat = stream.inputs(batch)

    def mean_loss(params: Any) -> Any:
        output, _ = stream.forward(params, batch_stats, clip, heat, moment.temperature, train=True, keys=keys)
        return stream.losses(output, batch["label"], moment)["loss"].mean()

    loss, backward = jax.vjp(mean_loss, params)
    return loss, jax.tree.leaves(backward)


def batch_shapes(config: ConfigDict, clips: int) -> dict[str, Any]:
    """Returns the shapes of a batch of so many clips."""
    frames = (clips, config.clip.frames, config.clip.size, config.clip.size, 3)
    whole_number = jax.ShapeDtypeStruct((clips,), jnp.int32)
    return {
        "frames": {name: jax.ShapeDtypeStruct(frames, jnp.uint8) for name in STREAMS[config.modality]},
        "label": whole_number,
        "record": whole_number,
    }


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any, shards: int = 1) -> int:
    """Returns the bytes that one device holds of a tree that is split as parameters are."""
    return sum(
        leaf.size * leaf.dtype.itemsize // (1 if sharded_axis(leaf.shape, shards) is None else shards)
        for leaf in jax.tree.leaves(tree)
    )
