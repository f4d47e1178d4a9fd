"""What is kept between the forward and the backward pass, and what is computed again (rematerialisation)."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Result = TypeVar("Result")

CHOICES = ("none", "cheap", "all")
_PRODUCT, _STATISTICS = "product", "batch_statistics"
# Batch statistics are always kept: they are small, and computing them again would send them between devices again.
_KEPT = {"cheap": (_PRODUCT, _STATISTICS), "all": (_STATISTICS,)}


def product(x: Array) -> Array:
    """Marks the result of a convolution or linear map: "cheap" keeps it."""
    return checkpoint_name(x, _PRODUCT)


def batch_statistics(x: Array) -> Array:
    """Marks statistics of a batch: they are never computed again."""
    return checkpoint_name(x, _STATISTICS)


def remat(what: str, modules: tuple[nnx.Module, ...], function: Callable[..., Result], *arguments: Any) -> Result:
    """Returns function(modules, *arguments), with what the gradient needs computed again instead of kept.

    Args:
        what: what is computed again: "none", "cheap" (all but convolutions and linear maps) or "all".
        modules: the modules whose parameters the function uses; their batch statistics may change.
        function: what is computed.
        arguments: arrays, or trees of them.
    """
    if what == "none":
        return function(modules, *arguments)
    graph, *states = nnx.split(modules, nnx.Param, nnx.BatchStat)
    params, batch_stats = states

    def pure(params, batch_stats, *arguments):
        copies = nnx.merge(graph, params, batch_stats, copy=True)
        result = function(copies, *arguments)
        return result, nnx.state(copies, nnx.BatchStat)

    policy = jax.checkpoint_policies.save_only_these_names(*_KEPT[what])
    result, batch_stats = jax.checkpoint(pure, policy=policy)(params, batch_stats, *arguments)
    nnx.update(modules, batch_stats)
    return result
