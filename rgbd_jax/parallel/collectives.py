"""Communication of a training step inside `jax.shard_map`; outside it every function returns its argument.

A step communicates: two small all-reduces for each BatchNorm layer (statistics and their gradients), the all-reduce of
the gradient and one of the metrics. With parameters split over devices (FSDP), each is gathered before it is used and
its gradient is reduced and scattered.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rgbd_jax.parallel.mesh import DATA, FSDP, sharded_axis

Tree = Mapping[str, Any]

SMALL = 1 << 16  # number of values below which a tensor is cheaper to copy than to sum by itself


def pmean(tree: Any) -> Any:
    """Returns the mean over all devices of every float in a tree."""
    return jax.lax.pmean(tree, _axes()) if _axes() else tree


def device_count() -> int:
    """Returns the number of devices that share the batch."""
    return math.prod(jax.lax.axis_size(axis) for axis in _axes())


def gather(params: Tree, shapes: Tree) -> Tree:
    """Returns whole parameters, of the given shapes, from those that this device holds, for use with its own clips.

    Its transpose sums gradients over devices, and returns of split parameters this device's part: an all-reduce and a
    reduce-scatter.
    """
    if not _axes():
        return params

    def whole(leaf: Array, full: Any) -> Array:
        axis = sharded_axis(full.shape, jax.lax.axis_size(FSDP))
        if axis is None:
            return jax.lax.pcast(leaf, _axes(), to="varying")
        # In this order the transpose scatters first, so that the all-reduce is of this device's part alone.
        return jax.lax.all_gather(jax.lax.pcast(leaf, DATA, to="varying"), FSDP, axis=axis, tiled=True)

    return jax.tree.map(whole, params, shapes)


def global_norm(gradient: Tree, shapes: Tree) -> Float[Array, ""]:
    """Returns the Euclidean norm of a gradient of which this device may hold a part."""
    shards = jax.lax.axis_size(FSDP) if _axes() else 1
    leaves: dict[bool, list[Array]] = {False: [], True: []}
    for leaf, full in zip(jax.tree.leaves(gradient), jax.tree.leaves(shapes), strict=True):
        leaves[sharded_axis(full.shape, shards) is not None].append(leaf)
    split = jax.lax.psum(_sum_of_squares(leaves[True]), FSDP) if leaves[True] else 0.0
    return jnp.sqrt(_sum_of_squares(leaves[False]) + split)


def _axes() -> tuple[str, ...]:
    return jax.sharding.get_abstract_mesh().manual_axes


def _sum_of_squares(leaves: list[Array]) -> Array | float:
    """Returns the sum of the squares of all values; small tensors are concatenated, so that one sum is compiled."""
    small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]
    large = [leaf for leaf in leaves if leaf.size > SMALL]
    return sum(jnp.sum(jnp.square(leaf)) for leaf in (*large, *([jnp.concatenate(small)] if small else [])))
