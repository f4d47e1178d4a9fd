"""Communication of a training step inside `jax.shard_map`; outside it every function returns its argument.

A step communicates: two small all-reduces for each BatchNorm layer (statistics and their gradients), and the gradient
and metrics, whose all-reduces XLA combines. With parameters split over devices (FSDP), each is gathered before it is
used and its gradient is reduced and scattered.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rgbd_jax.parallel.mesh import DATA, FSDP, sharded_axis

Tree = Mapping[str, Any]


def pmean(tree: Any) -> Any:
    """Returns the mean over all devices of every float in a tree."""
    return jax.lax.pmean(tree, _axes()) if _axes() else tree


def gather(params: Tree, shapes: Tree) -> Tree:
    """Returns whole parameters, marked as varying, so that gradients are those of this device's own clips.

    Args:
        params: the parameters, or this device's part of them.
        shapes: shapes of the whole parameters.
    """
    if not _axes():
        return params

    def whole(leaf: Array, full: Any) -> Array:
        axis = sharded_axis(full.shape, jax.lax.axis_size(FSDP))
        if axis is None:
            return jax.lax.pcast(leaf, _axes(), to="varying")
        return jax.lax.pcast(jax.lax.all_gather(leaf, FSDP, axis=axis, tiled=True), DATA, to="varying")

    return jax.tree.map(whole, params, shapes)


def mean_gradient(grads: Tree, shapes: Tree) -> Tree:
    """Returns the gradient averaged over all devices; of split parameters, this device's part."""
    if not _axes():
        return grads

    def mean(leaf: Array, full: Any) -> Array:
        shards = jax.lax.axis_size(FSDP)
        axis = sharded_axis(full.shape, shards)
        if axis is None:
            return jax.lax.pmean(leaf, _axes())
        return jax.lax.pmean(jax.lax.psum_scatter(leaf, FSDP, scatter_dimension=axis, tiled=True), DATA) / shards

    return jax.tree.map(mean, grads, shapes)


def global_norm(grads: Tree, shapes: Tree) -> Float[Array, ""]:
    """Returns the Euclidean norm of a gradient of which this device may hold a part."""
    if not _axes():
        return optax.tree.norm(grads)

    def square(leaf: Array, full: Any) -> Array:
        total = jnp.sum(jnp.square(leaf))
        return total if sharded_axis(full.shape, jax.lax.axis_size(FSDP)) is None else jax.lax.psum(total, FSDP)

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(square, grads, shapes))))


def _axes() -> tuple[str, ...]:
    return jax.sharding.get_abstract_mesh().manual_axes
