"""The mesh: clips are split over all devices, parameters optionally over some (FSDP); the rest is replicated."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, FSDP = "data", "fsdp"  # mesh axes: clips are split along both, parameters along the second
SMALLEST_SHARDED = 2**12  # values; smaller tensors are replicated: splitting them costs more than it saves


def make_mesh(shards: int, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of some or all devices, with parameters and optimizer state split over `shards` (FSDP)."""
    devices = jax.devices() if devices is None else devices
    if len(devices) % shards:
        raise ValueError(f"config.sharding.parameter_shards={shards} does not divide the {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(-1, shards), (DATA, FSDP))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_clip_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the clip."""
    return NamedSharding(mesh, by_clip())


def by_clip() -> PartitionSpec:
    """Returns the partition spec of arrays whose first axis is the clip."""
    return PartitionSpec((DATA, FSDP))


def sharded_axis(shape: tuple[int, ...], shards: int) -> int | None:
    """Returns the axis along which a parameter is split over `shards` devices; None if it is replicated.

    It is the longest axis that divides evenly; small tensors are not split. A function of the shape alone, so that a
    parameter and its optimizer state are split alike.
    """
    if shards == 1 or np.prod(shape) < SMALLEST_SHARDED:
        return None
    fitting = [axis for axis, length in enumerate(shape) if length % shards == 0]
    return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def state_specs(shapes: Any, shards: int) -> Any:
    """Returns the partition specs of a `TrainState` of shapes, split over `shards` devices."""

    def spec(leaf: Any) -> PartitionSpec:
        axis = sharded_axis(leaf.shape, shards)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, FSDP)

    specs = jax.tree.map(lambda leaf: PartitionSpec(), shapes)
    split = ("params", "opt_state", "ema_params")
    return specs.replace(**{name: jax.tree.map(spec, getattr(shapes, name)) for name in split})


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a `TrainState` of shapes on the mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(shapes, mesh.shape[FSDP]))


def shard(tree: Any, sharding: Any) -> Any:
    """Returns arrays on the mesh from a tree of arrays that is the same in every process.

    The sharding is a tree like it, or one for all.
    """

    def place(leaf: Any, where: NamedSharding) -> jax.Array:
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])

    return jax.tree.map(place, tree, jax.tree.broadcast(sharding, tree))


def share_of_process(batch_size: int) -> dict[str, int]:
    """Returns which clips of a global batch this process reads, as arguments of the loader."""
    return {
        "batch_size": batch_size // jax.device_count() * jax.local_device_count(),
        "shard_index": jax.process_index(),
        "shard_count": jax.process_count(),
    }


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Returns the batch as arrays over the whole mesh, from the clips that this process read."""
    sharding = by_clip_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
