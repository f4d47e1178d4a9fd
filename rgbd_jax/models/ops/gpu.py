"""Batch normalisation on GPUs, where a training step is bound by memory traffic and by the number of kernels.

Statistics are taken in one pass. The gradient computes the ReLU's mask again from the convolution's output, in each of
its two passes: XLA would store it, but for an optimization barrier. Before a pooling, the sums of the gradient are of
the pooled values alone.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from rgbd_jax.models.ops.normalisation import Norm, Normalised, NormalisedAndPooled, mean_over_devices, over_devices
from rgbd_jax.models.ops.pooling import POOLED, winners_of_windows, zero_but_winners
from rgbd_jax.models.ops.windows import Window

LONGEST_SUM = 4096  # values that XLA adds up in one kernel
ROW = 64  # values that a partial sum has at least
MOST_ROWS = 2048  # partial sums of a channel
NO_WINNER = 255  # in a window whose maximum is 0, so that no value receives its gradient


@jax.custom_vjp
def batch_norm_relu(x: Float[Array, "*batch c"], norm: Norm) -> Normalised:
    """`normalisation.batch_norm_relu` whose gradient includes the ReLU's."""
    return _forward(x, norm)[0]


def batch_norm_relu_max_pool(
    x: Float[Array, "b t h w c"], norm: Norm, window: Window, stride: Window
) -> NormalisedAndPooled:
    """`batch_norm_relu` and the maxima of its values; the values themselves cost nothing if they are not used."""
    pooled, mean, variance = _pooled(x, norm, window, stride)
    return NormalisedAndPooled(batch_norm_relu(x, norm).values, mean, variance, pooled)


def _forward(x, norm):
    mean, variance = _statistics(x, norm)  # c, c
    inverse = jax.lax.rsqrt(variance + norm.epsilon)  # c
    y = jax.nn.relu(_normalise(x, norm, mean, inverse)).astype(x.dtype)
    return Normalised(y, mean, variance), (x, norm, mean, inverse)


def _backward(residuals, cotangents):
    x, norm, mean, inverse = residuals

    def seen_again():
        again = jax.lax.optimization_barrier(x)
        positive = _normalise(again, norm, mean, inverse) > 0
        gradient = jnp.where(positive, cotangents.values.astype(mean.dtype), 0)
        return gradient, (again.astype(mean.dtype) - mean) * inverse

    gradient, normal = seen_again()
    sums = _sums(gradient, gradient * normal)  # 2 c
    gradient, normal = seen_again()
    return _gradients(gradient, normal, x, norm, inverse, sums)


batch_norm_relu.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pooled(x, norm, window, stride):
    return _pooled_forward(x, norm, window, stride)[0]


def _pooled_forward(x, norm, window, stride):
    normalised, residuals = _forward(x, norm)
    y, winning_x, winner = winners_of_windows(x, window, stride, normalised.values)
    winner = jnp.where(y > 0, winner, jnp.uint8(NO_WINNER))
    # Without the barrier XLA stores the outcomes of all comparisons, to take `winning_x` from x in the gradient.
    stored = jax.lax.optimization_barrier((y, winning_x, winner))
    y, winning_x, winner = (checkpoint_name(each, POOLED) for each in stored)
    return (y, normalised.mean, normalised.variance), (*residuals, winner, winning_x)


def _pooled_backward(window, stride, residuals, cotangents):
    gradient, _, _ = cotangents  # statistics have none
    x, norm, mean, inverse, winner, winning_x = residuals
    gradient = gradient.astype(mean.dtype)  # b t2 h2 w2 c
    reaching = jnp.where(winner < NO_WINNER, gradient, 0)
    sums = _sums(reaching, reaching * ((winning_x.astype(mean.dtype) - mean) * inverse))  # 2 c
    normal = (x.astype(mean.dtype) - mean) * inverse
    gradient = zero_but_winners(winner, gradient, x.shape, window, stride)  # b t h w c
    return _gradients(gradient, normal, x, norm, inverse, sums)


_pooled.defvjp(_pooled_forward, _pooled_backward)


def _gradients(gradient, normal, x, norm, inverse, sums):
    """Returns the gradients of x and norm from that of the normalised values and its two sums."""
    bias_mean, scale_mean = mean_over_devices(sums, x, norm.axes)  # c, c
    x_gradient = (norm.scale * inverse) * (gradient - bias_mean - normal * scale_mean)
    return x_gradient.astype(x.dtype), norm.replace(scale=sums[1], bias=sums[0], shift=jnp.zeros_like(norm.shift))


def _normalise(x, norm, mean, inverse):
    return (x.astype(mean.dtype) - mean) * (inverse * norm.scale) + norm.bias


def _statistics(x, norm):
    """Returns mean and biased variance from one pass over x; they are taken of x minus one of its values."""
    rows = x.reshape(-1, x.shape[-1])
    sample = rows[len(rows) // 2].astype(norm.shift.dtype)  # c
    centred = x.astype(sample.dtype) - sample
    offset, square = _sums(centred, jnp.square(centred)) / len(rows)  # c, c
    return over_devices(sample + offset, jnp.maximum(square - jnp.square(offset), 0), norm)


def _sums(*values: Float[Array, "*batch c"]) -> Float[Array, "k c"]:
    """Returns the sums of every channel, of all values together: two kernels, one for a small batch.

    Left to XLA, a long sum takes two kernels for each of the values.
    """
    channels = values[0].shape[-1]
    count = values[0].size // channels
    if count <= LONGEST_SUM:
        return jnp.stack([each.reshape(count, channels).sum(0) for each in values])
    rows = next(rows for rows in range(min(MOST_ROWS, count // ROW), 0, -1) if count % rows == 0)
    return jnp.stack([each.reshape(rows, -1, channels).sum(1) for each in values]).sum(1)
