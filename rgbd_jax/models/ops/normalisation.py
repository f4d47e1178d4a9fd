"""Batch normalisation in training, followed by ReLU."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

STATISTICS = "batch_statistics"  # name of values that rematerialisation stores


@struct.dataclass
class Norm:
    """The parameters of a normalisation."""

    scale: Float[Array, "c"]
    bias: Float[Array, "c"]
    shift: Float[Array, "c"]  # near the mean, such as the running mean: keeps the sums over devices small and precise
    epsilon: float = struct.field(pytree_node=False)  # added to the variance
    # Mesh axes of the devices that the statistics are taken over, by one all-reduce; the gradient takes another.
    axes: tuple[str, ...] = struct.field(pytree_node=False)


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


def batch_norm_relu(x: Float[Array, "*batch c"], norm: Norm, statistics: Callable = two_pass_statistics) -> Normalised:
    """Normalises x by its own statistics, which `statistics` takes of it in a dtype, and applies ReLU."""
    mean, variance = statistics(jax.lax.stop_gradient(x), norm.shift.dtype)  # c, c
    mean, variance = over_devices(mean, variance, norm)
    y = _normalised(x, norm.scale, norm.bias, mean, variance, norm.epsilon, norm.axes)
    return Normalised(jax.nn.relu(y), mean, variance)


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
    bias_mean, scale_mean = mean_over_devices(sums, x, axes)  # c, c
    x_gradient = (scale * inverse) * (gradient - bias_mean - normal * scale_mean)
    # The gradients of scale and bias are those of this device's clips, as for every other parameter.
    return x_gradient.astype(x.dtype), sums[1], sums[0], jnp.zeros_like(mean), jnp.zeros_like(inverse)


_normalised.defvjp(_forward, _backward)


def over_devices(
    mean: Float[Array, "c"], variance: Float[Array, "c"], norm: Norm
) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Returns the mean and variance over `norm.axes` from those of this device, by the name that remat stores."""
    if norm.axes:
        offset = mean - norm.shift
        offset, square = jax.lax.pmean(jnp.stack([offset, variance + jnp.square(offset)]), norm.axes)  # c, c
        mean, variance = norm.shift + offset, jnp.maximum(square - jnp.square(offset), 0)
    return checkpoint_name(mean, STATISTICS), checkpoint_name(variance, STATISTICS)


def mean_over_devices(sums: Float[Array, "k c"], x: Array, axes: tuple[str, ...]) -> Float[Array, "k c"]:
    """Returns the means over all values of a channel, from the sums over this device's x."""
    return (jax.lax.psum(sums, axes) if axes else sums) / values_per_channel(x, axes)


def values_per_channel(x: Array, axes: tuple[str, ...]) -> int:
    """Returns the number of values in a channel over all devices."""
    return x.size // x.shape[-1] * math.prod(jax.lax.axis_size(axis) for axis in axes)
