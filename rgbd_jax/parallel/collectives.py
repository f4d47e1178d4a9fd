"""Communication of a training step inside `jax.shard_map`; outside it every function returns its argument.

A step communicates: two small all-reduces for each BatchNorm layer (statistics and their gradients), one all-reduce of
the gradient and one of the metrics. With parameters split over devices (FSDP), each is gathered before it is used and
its gradient is reduced and scattered.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from rgbd_jax.parallel.mesh import DATA, FSDP, sharded_axis

Tree = Mapping[str, Any]

SMALL = 1 << 16  # number of values below which a tensor is cheaper to copy than to sum by itself


def pmean(tree: Any) -> Any:
    """Returns the mean over all devices of every float in a tree, by one all-reduce."""
    if not _axes():
        return tree
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, _axes()))


def varying(tree: Any) -> Any:
    """Returns a tree marked as different on every device, so that gradients are those of a device's own clips."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, _axes(), to="varying"), tree) if _axes() else tree


def gather(params: Tree, shapes: Tree) -> Tree:
    """Returns whole parameters, marked as varying, from those that this device holds.

    Args:
        params: the parameters, or this device's part of them.
        shapes: shapes of the whole parameters.
    """
    if not _axes():
        return params

    def whole(leaf: Array, full: Any) -> Array:
        axis = sharded_axis(full.shape, _shards())
        if axis is None:
            return jax.lax.pcast(leaf, _axes(), to="varying")
        return jax.lax.pcast(jax.lax.all_gather(leaf, FSDP, axis=axis, tiled=True), DATA, to="varying")

    return jax.tree.map(whole, params, shapes)


def mean_gradient(gradient: Tree, shapes: Tree) -> Tree:
    """Returns the gradient averaged over all devices; of split parameters, this device's part."""
    if not _axes():
        return gradient
    devices = math.prod(jax.lax.axis_size(axis) for axis in _axes())
    leaves, structure = jax.tree.flatten(gradient)
    axes = [sharded_axis(full.shape, _shards()) for full in jax.tree.leaves(shapes)]
    whole = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is None]
    scattered = [
        jax.lax.psum_scatter(leaf, FSDP, scatter_dimension=axis, tiled=True)
        for leaf, axis in zip(leaves, axes, strict=True)
        if axis is not None
    ]
    # One vector each: hundreds of separate all-reduces would each wait for the network.
    means = iter(_mean(whole, _axes(), devices)), iter(_mean(scattered, (DATA,), devices))
    return jax.tree.unflatten(structure, [next(means[axis is not None]) for axis in axes])


def global_norm(gradient: Tree, shapes: Tree) -> Float[Array, ""]:
    """Returns the Euclidean norm of a gradient of which this device may hold a part."""
    leaves: dict[bool, list[Array]] = {False: [], True: []}
    for leaf, full in zip(jax.tree.leaves(gradient), jax.tree.leaves(shapes), strict=True):
        leaves[_shards() > 1 and sharded_axis(full.shape, _shards()) is not None].append(leaf)
    scattered = jax.lax.psum(_sum_of_squares(leaves[True]), FSDP) if _shards() > 1 else 0.0
    return jnp.sqrt(_sum_of_squares(leaves[False]) + scattered)


def _axes() -> tuple[str, ...]:
    return jax.sharding.get_abstract_mesh().manual_axes


def _shards() -> int:
    return jax.lax.axis_size(FSDP) if _axes() else 1


def _mean(leaves: list[Array], axes: tuple[str, ...], devices: int) -> list[Array]:
    if not leaves:
        return []
    flat, restore = ravel_pytree(leaves)
    return restore(jax.lax.psum(flat, axes) / devices)


def _sum_of_squares(leaves: list[Array]) -> Array | float:
    """Returns the sum of the squares of all values; small tensors are concatenated, so that one sum is compiled."""
    small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]
    large = [leaf for leaf in leaves if leaf.size > SMALL]
    return sum(jnp.sum(jnp.square(leaf)) for leaf in (*large, *([jnp.concatenate(small)] if small else [])))
