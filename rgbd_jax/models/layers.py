"""Building blocks of the spatial and temporal networks: convolution unit, batch normalisation, pooling, inception."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rgbd_jax.models.ops import convolve, same_padding
from rgbd_jax.models.remat import batch_statistics, product

Window = tuple[int, int, int]  # t h w


def scaled(channels: int, width: float) -> int:
    """Returns a channel count times the width multiplier, rounded to a multiple of 4 (at width 1 unchanged)."""
    return channels if width == 1 else max(4, 4 * round(channels * width / 4))


class Types(TypedDict):
    """What a layer computes in, and what its parameters are kept in."""

    dtype: DTypeLike
    param_dtype: DTypeLike


class Linear(nnx.Module):
    """A linear map of the last axis, with or without bias."""

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = True, dtype: DTypeLike, param_dtype: DTypeLike):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Applies the map in the compute type."""
        y = product(x.astype(self.dtype) @ self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Normalisation of the last axis, with PyTorch's epsilon; the statistics are taken in the parameters' type."""

    def __init__(self, features: int, *, dtype: DTypeLike, param_dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalises x and returns it in the compute type."""
        x = x.astype(self.scale[...].dtype)
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class BatchStatistics:
    """How BatchNorm takes its statistics.

    Attributes:
        momentum: share of a batch in the running statistics.
        axes: mesh axes over which the clips of a batch are spread inside `jax.shard_map`: the statistics are those of
            all of them. Without any, they are those of the clips that are at hand.
    """

    momentum: float
    axes: tuple[str, ...] = ()


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics (unbiased variance).

    Statistics are taken in the type of the parameters, whatever the compute type is.
    """

    def __init__(self, features: int, *, epsilon: float, statistics: BatchStatistics, param_dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.variance = nnx.BatchStat(jnp.ones(features, param_dtype))
        self.epsilon = epsilon
        self.momentum = statistics.momentum
        self.axes = statistics.axes

    def __call__(self, x: Float[Array, "*batch c"], *, train: bool) -> Float[Array, "*batch c"]:
        """Normalises x; in training with the batch's own statistics, which also move the running ones."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            factor = scale * jax.lax.rsqrt(self.variance[...] + self.epsilon)  # c
            offset = bias - self.mean[...] * factor  # c
            return x * factor.astype(x.dtype) + offset.astype(x.dtype)
        y, mean, variance = normalise_batch(x, scale, bias, self.mean[...], self.epsilon, self.axes)
        count = _count(x, self.axes)
        unbiased = variance * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (mean - self.mean[...])
        self.variance[...] += self.momentum * (unbiased - self.variance[...])
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise_batch(
    x: Float[Array, "*batch c"], scale: Float[Array, "c"], bias: Float[Array, "c"], shift: Float[Array, "c"],
    epsilon: float, axes: tuple[str, ...],
) -> tuple[Float[Array, "*batch c"], Float[Array, "c"], Float[Array, "c"]]:  # fmt: skip
    """Returns x normalised by its own statistics, and these: mean and biased variance (no gradient flows into them).

    With mesh axes the statistics are those of x on all devices, from one reduction; the gradient takes one more. The
    gradient is written out because what autodiff makes of the two passes reads x three times more often.

    Args:
        x: what is normalised.
        scale: what normal values are multiplied by.
        bias: what is then added.
        shift: a value near the mean, such as the running mean: it keeps the sums over devices small, and precise.
        epsilon: added to the variance.
        axes: mesh axes that x is spread over.
    """
    return _normalise_batch_forward(x, scale, bias, shift, epsilon, axes)[0]


def _normalise_batch_forward(x, scale, bias, shift, epsilon, axes):
    exact = x.astype(scale.dtype)
    reduced = tuple(range(x.ndim - 1))
    mean = exact.mean(reduced)  # c
    # Two passes, since E[x^2] - E[x]^2 cancels in float32.
    variance = jnp.square(exact - mean).mean(reduced)  # c
    if axes:
        away = mean - shift
        away, square = jax.lax.pmean(jnp.stack([away, variance + jnp.square(away)]), axes)  # c, c
        mean, variance = shift + away, jnp.maximum(square - jnp.square(away), 0)
    mean, variance = batch_statistics(mean), batch_statistics(variance)
    inverse = jax.lax.rsqrt(variance + epsilon)  # c
    y = ((exact - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse, shift)


def _normalise_batch_backward(epsilon, axes, saved, cotangents):
    del epsilon
    x, scale, mean, inverse, shift = saved
    gradient = cotangents[0].astype(scale.dtype)
    normal = (x.astype(scale.dtype) - mean) * inverse
    reduced = tuple(range(x.ndim - 1))
    sums = jnp.stack([gradient.sum(reduced), (gradient * normal).sum(reduced)])  # 2 c
    bias_mean, scale_mean = (jax.lax.psum(sums, axes) if axes else sums) / _count(x, axes)  # c, c
    x_gradient = (scale * inverse) * (gradient - bias_mean - normal * scale_mean)
    # The gradients of scale and bias are those of the clips at hand, as every other parameter's.
    return x_gradient.astype(x.dtype), sums[1], sums[0], jnp.zeros_like(shift)


def _count(x: Array, axes: tuple[str, ...]) -> int:
    """Counts the values of a channel on all devices."""
    return x.size // x.shape[-1] * math.prod(jax.lax.axis_size(axis) for axis in axes)


normalise_batch.defvjp(_normalise_batch_forward, _normalise_batch_backward)


class ConvUnit(nnx.Module):
    """Convolution without bias, BatchNorm, ReLU (the reference's Unit3D), padded as TensorFlow's SAME does."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_shape: tuple[int, int, int] = (1, 1, 1),
        spatial_stride: int = 1,
        *,
        statistics: BatchStatistics,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
    ):
        shape = (*kernel_shape, inputs, outputs)  # t h w i o
        self.kernel = nnx.Param(jnp.zeros(shape, param_dtype))
        self.norm = BatchNorm(outputs, epsilon=1e-3, statistics=statistics, param_dtype=param_dtype)
        self.spatial_stride = spatial_stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t h w i"], *, train: bool) -> Float[Array, "b t h2 w2 o"]:
        """Applies the unit; h2 and w2 are h and w divided by the stride, rounded up."""
        y = product(convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.spatial_stride))
        return jax.nn.relu(self.norm(y, train=train))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: Float[Array, "b t h w c"], window: Window, stride: Window = (1, 1, 1)) -> Float[Array, "b t2 h2 w2 c"]:
    """Max pooling over t, h, w with SAME padding by zeros, as the reference pads (zeros win over negative values).

    The axes are pooled one after the other as maxima of shifted slices: the same values, and a gradient without
    select-and-scatter, which is slow on CPUs. For the gradient nothing is kept but x: which of the slices won is
    computed again, since keeping that would take several times the memory of all convolutions' results.
    """
    return _max_pool(x, window, stride, jnp.maximum)


def _max_pool_forward(x, window, stride):
    return max_pool(x, window, stride), x


def _max_pool_backward(window, stride, x, gradient):
    if window[1:] == (1, 1):
        return (_max_pool_gradient(x, gradient, window, stride),)  # frames have nothing to be pooled within
    by_frame = functools.partial(_max_pool_gradient_by_frame, window=window, stride=stride)
    whole = functools.partial(_max_pool_gradient, window=window, stride=stride)
    return (jax.lax.platform_dependent(x, gradient, cpu=by_frame, default=whole),)


def _max_pool_gradient(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    # Of equal values the first one gets the gradient.
    _, pull = jax.vjp(lambda x: _max_pool(x, window, stride, lambda a, b: jnp.where(b > a, b, a)), x)
    return pull(gradient)[0]


def _max_pool_gradient_by_frame(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    """Returns the gradient by x, computed frame by frame as far as it goes, so that a CPU's cache holds a frame."""
    over_time, stride_of_time = (window[0], 1, 1), (stride[0], 1, 1)
    over_pixels, stride_of_pixels = (1, *window[1:]), (1, *stride[1:])
    pooled_over_time = _max_pool(x, over_time, stride_of_time, jnp.maximum)  # b t2 h w c

    def of_frame(total, frame):
        place, frame_x, frame_gradient = frame
        result = _max_pool_gradient(frame_x, frame_gradient, over_pixels, stride_of_pixels)
        return jax.lax.dynamic_update_index_in_dim(total, result, place, 0), None

    places = jnp.arange(x.shape[0] * pooled_over_time.shape[1])
    frames = [a.reshape(-1, 1, 1, *a.shape[2:]) for a in (pooled_over_time, gradient)]  # (b t2) 1 1 h w c
    # What the result starts with is written over; taken from the gradient, it takes no memory before that is there.
    start = jnp.broadcast_to(gradient[0, 0, 0, 0, 0], frames[0].shape)
    pixel_gradient, _ = jax.lax.scan(of_frame, start, (places, *frames))
    return _max_pool_gradient(x, pixel_gradient.reshape(pooled_over_time.shape), over_time, stride_of_time)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_pool(x: Array, window: Window, stride: Window, larger: Callable) -> Array:
    for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=1):
        if size > 1:
            x = _max_pool_axis(x, axis, size, step, larger)
    return x


def _max_pool_axis(x: Array, axis: int, size: int, step: int, larger: Callable) -> Array:
    length = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = same_padding(length, size, step)
    outputs = -(-length // step)
    padded = jnp.pad(x, padding)
    taps = [jax.lax.slice_in_dim(padded, start, start + (outputs - 1) * step + 1, step, axis) for start in range(size)]
    return functools.reduce(larger, taps)


class Inception(nnx.Module):
    """Four parallel paths, concatenated: 1x1; 1x1 then kernel; 1x1 then kernel; max pool then 1x1.

    The spatial block has 1x3x3 kernels and a 3x3x3 pool, which mixes neighbouring frames; the temporal one has
    3x1x1 kernels and pool.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        *,
        kernel_shape: tuple[int, int, int],
        pool_window: tuple[int, int, int],
        statistics: BatchStatistics,
        **types: Unpack[Types],
    ):
        a, b, c, d, e, f = channels
        unit = functools.partial(ConvUnit, statistics=statistics, **types)
        self.branch0 = unit(inputs, a)
        self.branch1_reduce = unit(inputs, b)
        self.branch1 = unit(b, c, kernel_shape)
        self.branch2_reduce = unit(inputs, d)
        self.branch2 = unit(d, e, kernel_shape)
        self.branch3 = unit(inputs, f)
        self.pool_window = pool_window
        self.outputs = a + c + e + f

    def __call__(self, x: Float[Array, "b t h w i"], *, train: bool) -> Float[Array, "b t h w o"]:
        """Applies the four paths to x and concatenates their channels."""
        paths = [
            self.branch0(x, train=train),
            self.branch1(self.branch1_reduce(x, train=train), train=train),
            self.branch2(self.branch2_reduce(x, train=train), train=train),
            self.branch3(max_pool(x, self.pool_window), train=train),
        ]
        return jnp.concatenate(paths, axis=-1)  # b t h w o
