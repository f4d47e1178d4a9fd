"""One mesh over all devices: clips are split over it, everything else is copied to every device."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CLIPS = "clips"


def clip_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, with one axis along which clips are split."""
    return Mesh(np.asarray(jax.devices()), (CLIPS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_clip(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the clip."""
    return NamedSharding(mesh, PartitionSpec(CLIPS))


def local_batch_size(batch_size: int, field: str) -> int:
    """Returns how many clips of a global batch this process reads.

    Raises:
        ValueError: the batch does not divide evenly; names the config field.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise ValueError(
            f"{field}={batch_size} does not divide by the {devices} devices; use a multiple of {devices}, such as "
            f"{max(round(batch_size / devices), 1) * devices}"
        )
    return batch_size // jax.process_count()


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Returns the batch as arrays over the whole mesh, from the clips that this process read."""
    sharding = split_by_clip(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
