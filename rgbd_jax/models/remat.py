"""Rematerialisation: what is stored for the backward pass, and what is recomputed."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Result = TypeVar("Result")

_PRODUCT, _STATISTICS = "product", "batch_statistics"
# Batch statistics are always stored: they are small, and recomputing them would repeat an all-reduce.
_STORED = {"cheap": (_PRODUCT, _STATISTICS), "all": (_STATISTICS,)}


def product(x: Array) -> Array:
    """Marks the result of a convolution or linear map: "cheap" stores it."""
    return checkpoint_name(x, _PRODUCT)


def batch_statistics(x: Array) -> Array:
    """Marks statistics of a batch: they are always stored."""
    return checkpoint_name(x, _STATISTICS)


def remat(policy: str, modules: tuple[nnx.Module, ...], function: Callable[..., Result], *arguments: Any) -> Result:
    """Returns function(modules, *arguments), recomputing intermediate values in the backward pass.

    Args:
        policy: what is recomputed: "none", "cheap" (all but convolutions and linear maps) or "all".
        modules: the modules whose parameters the function uses; their batch statistics may change.
        function: the function.
        arguments: arrays, or trees of them.
    """
    if policy == "none":
        return function(modules, *arguments)
    graph, *states = nnx.split(modules, nnx.Param, nnx.BatchStat)
    params, batch_stats = states

    def pure(params, batch_stats, *arguments):
        copies = nnx.merge(graph, params, batch_stats, copy=True)
        result = function(copies, *arguments)
        return result, nnx.state(copies, nnx.BatchStat)

    stored = jax.checkpoint_policies.save_only_these_names(*_STORED[policy])
    result, batch_stats = jax.checkpoint(pure, policy=stored)(params, batch_stats, *arguments)
    nnx.update(modules, batch_stats)
    return result
