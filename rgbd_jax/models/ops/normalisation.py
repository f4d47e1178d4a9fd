"""Batch normalisation in training, followed by ReLU."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

STATISTICS = "batch_statistics"  # name of values that rematerialisation stores


class Normalised(NamedTuple):
    """Normalised values, and the statistics that they were normalised by: mean and biased variance.

    The statistics have no gradient.
    """

    values: Float[Array, "*batch c"]
    mean: Float[Array, "c"]
    variance: Float[Array, "c"]


class NormalisedAndPooled(NamedTuple):
    """`Normalised`, and the maxima of the values."""

    values: Float[Array, "b t h w c"]
    mean: Float[Array, "c"]
    variance: Float[Array, "c"]
    pooled: Float[Array, "b t2 h2 w2 c"]


def two_pass_statistics(x: Float[Array, "*batch c"], dtype: DTypeLike) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Returns mean and biased variance over all axes but the last, computed in a dtype."""
    exact, reduced = x.astype(dtype), tuple(range(x.ndim - 1))
    mean = exact.mean(reduced)  # c
    return mean, jnp.square(exact - mean).mean(reduced)


def batch_norm_relu(
    x: Float[Array, "*batch c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    shift: Float[Array, "c"],
    epsilon: float,
    axes: tuple[str, ...],
    statistics: Callable = two_pass_statistics,
) -> Normalised:
    """Normalises x by its own statistics and applies ReLU.

    Args:
        x: the values.
        scale: the factor of each channel.
        bias: the offset of each channel.
        shift: a value near the mean, such as the running mean: it keeps the sums over devices small and precise.
        epsilon: added to the variance.
        axes: mesh axes over which x is split, for the statistics of x on all devices, from one all-reduce; the gradient
            takes another.
        statistics: how the statistics of this device's x are computed, from x and a dtype.
    """
    mean, variance = statistics(jax.lax.stop_gradient(x), shift.dtype)  # c, c
    mean, variance = over_devices(mean, variance, shift, axes)
    mean, variance = checkpoint_name(mean, STATISTICS), checkpoint_name(variance, STATISTICS)
    return Normalised(jax.nn.relu(_normalised(x, scale, bias, mean, variance, epsilon, axes)), mean, variance)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _normalised(x, scale, bias, mean, variance, epsilon, axes):
    """Returns x normalised by its statistics, whose gradient is part of that of x."""
    return _forward(x, scale, bias, mean, variance, epsilon, axes)[0]


def _forward(x, scale, bias, mean, variance, epsilon, axes):
    del axes
    inverse = jax.lax.rsqrt(variance + epsilon)  # c
    y = ((x.astype(scale.dtype) - mean) * (inverse * scale) + bias).astype(x.dtype)
    return y, (x, scale, mean, inverse)


def _backward(epsilon, axes, residuals, gradient):
    """Written out, because autodiff of the statistics reads x three times more often."""
    del epsilon
    x, scale, mean, inverse = residuals
    gradient = gradient.astype(scale.dtype)
    normal = (x.astype(scale.dtype) - mean) * inverse
    reduced = tuple(range(x.ndim - 1))
    sums = jnp.stack([gradient.sum(reduced), (gradient * normal).sum(reduced)])  # 2 c
    bias_mean, scale_mean = (jax.lax.psum(sums, axes) if axes else sums) / values_per_channel(x, axes)  # c, c
    x_gradient = (scale * inverse) * (gradient - bias_mean - normal * scale_mean)
    # The gradients of scale and bias are those of this device's clips, as for every other parameter.
    return x_gradient.astype(x.dtype), sums[1], sums[0], jnp.zeros_like(mean), jnp.zeros_like(inverse)


_normalised.defvjp(_forward, _backward)


def over_devices(
    mean: Float[Array, "c"], variance: Float[Array, "c"], shift: Float[Array, "c"], axes: tuple[str, ...]
) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Returns the mean and variance over mesh axes from those of this device; `shift` is a value near the mean."""
    if not axes:
        return mean, variance
    offset = mean - shift
    offset, square = jax.lax.pmean(jnp.stack([offset, variance + jnp.square(offset)]), axes)  # c, c
    return shift + offset, jnp.maximum(square - jnp.square(offset), 0)


def values_per_channel(x: Array, axes: tuple[str, ...]) -> int:
    """Returns the number of values in a channel over all devices."""
    return x.size // x.shape[-1] * math.prod(jax.lax.axis_size(axis) for axis in axes)
