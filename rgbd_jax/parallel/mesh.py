"""The mesh: clips are split over all devices, and, if asked for, parameters over some of them; the rest is copied."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Axes of the mesh. Clips are split along both; parameters along the second alone.
REPLICAS, SHARDS = "replicas", "shards"
# Tensors of fewer elements are whole on every device: splitting them costs more than it saves.
SMALLEST_SHARDED = 2**12


def make_mesh(shards: int, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of all devices of all processes.

    Args:
        shards: over how many devices parameters and optimizer state are split (FSDP); 1 copies them to every device.
        devices: the devices, in order; None takes all, those of one process side by side.

    Raises:
        ValueError: the devices do not divide by `shards`; names the config field.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % shards:
        raise ValueError(
            f"config.sharding.parameter_shards={shards} does not divide the number of devices, {len(devices)}"
        )
    return Mesh(np.asarray(devices).reshape(-1, shards), (REPLICAS, SHARDS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_clip(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the clip."""
    return NamedSharding(mesh, by_clip())


def by_clip() -> PartitionSpec:
    """Returns how arrays whose first axis is the clip lie on the mesh."""
    return PartitionSpec((REPLICAS, SHARDS))


def sharded_axis(shape: tuple[int, ...], shards: int) -> int | None:
    """Returns the axis along which a parameter is split over `shards` devices; None if every device holds it whole.

    It is the longest axis that divides evenly; small tensors are not split. A function of the shape, so that a
    parameter and its optimizer state lie alike.
    """
    if shards == 1 or np.prod(shape) < SMALLEST_SHARDED:
        return None
    fitting = [axis for axis, length in enumerate(shape) if length % shards == 0]
    return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def state_specs(shapes: Any, shards: int) -> Any:
    """Returns how a train state lies on the mesh: a tree of partition specs.

    Args:
        shapes: a TrainState of shapes (see `Stream.shapes`).
        shards: over how many devices parameters and optimizer state are split.
    """

    def spec(leaf: Any) -> PartitionSpec:
        axis = sharded_axis(leaf.shape, shards)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, SHARDS)

    return shapes.replace(
        step=PartitionSpec(),
        params=jax.tree.map(spec, shapes.params),
        batch_stats=jax.tree.map(lambda leaf: PartitionSpec(), shapes.batch_stats),
        optimizer_state=jax.tree.map(spec, shapes.optimizer_state),
    )


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a train state on the mesh (see `state_specs`)."""
    specs = state_specs(shapes, mesh.shape[SHARDS])
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def place(tree: Any, sharding: Any) -> Any:
    """Returns a tree of arrays, the same in every process, on the mesh.

    Args:
        tree: arrays of NumPy or of this process's JAX.
        sharding: a tree of shardings like it, or one for all.
    """
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def spread(leaf: Any, where: NamedSharding) -> jax.Array:
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])

    return jax.tree.map(spread, tree, sharding)


def local_batch_size(batch_size: int) -> int:
    """Returns how many clips of a global batch this process reads."""
    return batch_size // jax.device_count() * jax.local_device_count()


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Returns the batch as arrays over the whole mesh, from the clips that this process read."""
    sharding = split_by_clip(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
