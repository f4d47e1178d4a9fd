"""What devices tell each other in a training step, as it is written inside `jax.shard_map`.

A step sends: two small reductions for each BatchNorm layer (statistics, and their gradients), one reduction of the
whole gradient, and one of the step's figures. With parameters split over devices, each is gathered before it is used
and its gradient is scattered.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from rgbd_jax.parallel.mesh import REPLICAS, SHARDS, sharded_axis

Tree = Mapping[str, Any]

SMALL = 1 << 16  # values of a tensor that is cheaper to copy than to sum by itself


@dataclasses.dataclass(frozen=True)
class Spread:
    """How a step is spread over devices.

    Attributes:
        axes: mesh axes along which clips are split; none outside `jax.shard_map`, where one device has all clips.
        shards: over how many devices parameters and optimizer state are split.
    """

    axes: tuple[str, ...] = ()
    shards: int = 1

    def mean(self, tree: Any) -> Any:
        """Returns the mean over all devices of every float in a tree, from one reduction."""
        if not self.axes:
            return tree
        flat, restore = ravel_pytree(tree)
        return restore(jax.lax.pmean(flat, self.axes))

    def gather(self, params: Tree, shapes: Tree) -> Tree:
        """Returns whole parameters from those that this device holds, which `shapes` are the whole shapes of.

        They are marked as the device's own, so that gradients by them are those of its own clips.
        """
        if not self.axes:
            return params

        def whole(leaf: Array, full: Any) -> Array:
            axis = sharded_axis(full.shape, self.shards)
            if axis is None:
                return jax.lax.pcast(leaf, self.axes, to="varying")
            return jax.lax.pcast(jax.lax.all_gather(leaf, SHARDS, axis=axis, tiled=True), REPLICAS, to="varying")

        return jax.tree.map(whole, params, shapes)

    def zeros_like(self, tree: Any) -> Any:
        """Returns zeros that are marked as the device's own, to which its gradients can be added."""
        return jax.tree.map(lambda leaf: self._own(jnp.zeros(leaf.shape, leaf.dtype)), tree)

    def _own(self, leaf: Array) -> Array:
        return jax.lax.pcast(leaf, self.axes, to="varying") if self.axes else leaf

    def mean_gradient(self, gradient: Tree, shapes: Tree) -> Tree:
        """Returns the gradient averaged over all devices; of split parameters, the part that this device holds."""
        if not self.axes:
            return gradient
        devices = math.prod(jax.lax.axis_size(axis) for axis in self.axes)
        leaves, structure = jax.tree.flatten(gradient)
        split = self._axes_of_split(shapes)
        whole = [leaf for leaf, axis in zip(leaves, split, strict=True) if axis is None]
        parts = [
            jax.lax.psum_scatter(leaf, SHARDS, scatter_dimension=axis, tiled=True)
            for leaf, axis in zip(leaves, split, strict=True)
            if axis is not None
        ]
        # One vector each: a reduction of its own for each of hundreds of tensors would wait hundreds of times.
        means = iter(self._sum(whole, self.axes, devices)), iter(self._sum(parts, (REPLICAS,), devices))
        return jax.tree.unflatten(structure, [next(means[axis is not None]) for axis in split])

    def norm(self, gradient: Tree, shapes: Tree) -> Float[Array, ""]:
        """Returns the Euclidean norm of a gradient that devices may hold parts of."""
        leaves: dict[bool, list[Array]] = {False: [], True: []}
        for leaf, axis in zip(jax.tree.leaves(gradient), self._axes_of_split(shapes), strict=True):
            leaves[axis is not None].append(leaf)
        parts = jax.lax.psum(_sum_of_squares(leaves[True]), SHARDS) if self.shards > 1 else 0.0
        return jnp.sqrt(_sum_of_squares(leaves[False]) + parts)

    def _axes_of_split(self, shapes: Tree) -> list[int | None]:
        return [sharded_axis(full.shape, self.shards) for full in jax.tree.leaves(shapes)]

    @staticmethod
    def _sum(leaves: list[Array], axes: tuple[str, ...], devices: int) -> list[Array]:
        if not leaves:
            return []
        flat, restore = ravel_pytree(leaves)
        return restore(jax.lax.psum(flat, axes) / devices)


def _sum_of_squares(leaves: list[Array]) -> Array | float:
    """Returns the sum of the squares of all values; small tensors are summed as one, which is compiled once."""
    small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]
    large = [leaf for leaf in leaves if leaf.size > SMALL]
    return sum(jnp.sum(jnp.square(leaf)) for leaf in (*large, *([jnp.concatenate(small)] if small else [])))


ALONE = Spread()
