"""Building blocks of the networks: linear maps, normalisation, dropout, convolution units and inception blocks."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from rgbd_jax.models.ops import Window, convolve, max_pool
from rgbd_jax.models.remat import batch_statistics, product
from rgbd_jax.models.rngs import ClipRngs


class DTypes(NamedTuple):
    """The dtype that a layer computes in, and the one that its parameters and statistics have."""

    compute: DTypeLike
    param: DTypeLike


def dtypes_of(config: ConfigDict) -> DTypes:
    """Returns `config.model.dtype` with parameters of at least float32."""
    dtype = jnp.dtype(config.model.dtype)
    return DTypes(dtype, jnp.promote_types(dtype, jnp.float32))


def head_dtypes(config: ConfigDict) -> DTypes:
    """Returns the dtypes of layers that produce logits: they compute in the parameters' dtype."""
    param = dtypes_of(config).param
    return DTypes(param, param)


def at_least_float32(x: Array) -> Array:
    """Returns x in float32, or in its own dtype if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def scaled(channels: int, width: float) -> int:
    """Returns a channel count times the width multiplier, rounded to a multiple of 4 (at width 1 unchanged)."""
    return channels if width == 1 else max(4, 4 * round(channels * width / 4))


class Linear(nnx.Module):
    """A linear map of the last axis, with or without bias."""

    def __init__(self, inputs: int, outputs: int, dtypes: DTypes, use_bias: bool = True):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), dtypes.param))
        self.bias = nnx.Param(jnp.zeros(outputs, dtypes.param)) if use_bias else None
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Applies the map in the compute dtype."""
        y = product(x.astype(self.dtype) @ self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Normalisation of the last axis, with PyTorch's epsilon; statistics in the parameters' dtype."""

    def __init__(self, features: int, dtypes: DTypes):
        self.scale = nnx.Param(jnp.ones(features, dtypes.param))
        self.bias = nnx.Param(jnp.zeros(features, dtypes.param))
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalises x and returns it in the compute dtype."""
        x = x.astype(self.scale[...].dtype)
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)


class Dropout(nnx.Module):
    """Sets a fraction of the values to zero in training and scales up the rest, with a key for each clip."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: Float[Array, "b *rest"], rngs: ClipRngs | None) -> Float[Array, "b *rest"]:
        """Returns x with values dropped; x itself without `rngs`."""
        (mask,) = self.masks(rngs, x.shape[1:])
        return self.apply(x, mask)

    def masks(self, rngs: ClipRngs | None, *shapes: tuple[int, ...]) -> tuple[Bool[Array, "b *rest"] | None, ...]:
        """Draws the masks of several tensors together, so that one generator is compiled for all.

        Args:
            rngs: source of the keys; without it nothing is dropped.
            shapes: shapes of the tensors without the batch axis.

        Returns:
            For each tensor which values are kept, or None where nothing is dropped.
        """
        if rngs is None or not self.rate:
            return (None,) * len(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        keys = rngs.next_keys()
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, (sum(sizes),)))(keys)  # b sum
        parts = jnp.split(kept, np.cumsum(sizes)[:-1], axis=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))

    def apply(self, x: Float[Array, "b *rest"], mask: Bool[Array, "b *rest"] | None) -> Float[Array, "b *rest"]:
        """Returns x where the mask is set, scaled up, and zeros elsewhere; x itself without a mask."""
        return x if mask is None else jnp.where(mask, x / (1 - self.rate), 0)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics (unbiased variance).

    Statistics are computed in the parameters' dtype. Inside `jax.shard_map` they are those of the whole batch over all
    devices (`sync`), or of each device's part.

    Args:
        features: number of channels.
        param_dtype: dtype of parameters and statistics.
        epsilon: added to the variance.
        momentum: fraction of a batch's statistics in the running ones (PyTorch's convention).
        sync: whether statistics are averaged over devices.
    """

    def __init__(self, features: int, param_dtype: DTypeLike, *, epsilon: float, momentum: float, sync: bool):
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.variance = nnx.BatchStat(jnp.ones(features, param_dtype))
        self.epsilon, self.momentum, self.sync = epsilon, momentum, sync

    def __call__(self, x: Float[Array, "*batch c"], *, train: bool) -> Float[Array, "*batch c"]:
        """Normalises x; in training by the batch's own statistics, which also update the running ones."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            factor = scale * jax.lax.rsqrt(self.variance[...] + self.epsilon)  # c
            offset = bias - self.mean[...] * factor  # c
            return x * factor.astype(x.dtype) + offset.astype(x.dtype)
        axes = jax.sharding.get_abstract_mesh().manual_axes if self.sync else ()
        y, mean, variance = normalise_batch(x, scale, bias, self.mean[...], self.epsilon, axes)
        count = _count(x, axes)
        unbiased = variance * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (mean - self.mean[...])
        self.variance[...] += self.momentum * (unbiased - self.variance[...])
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise_batch(
    x: Float[Array, "*batch c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    shift: Float[Array, "c"],
    epsilon: float,
    axes: tuple[str, ...],
) -> tuple[Float[Array, "*batch c"], Float[Array, "c"], Float[Array, "c"]]:
    """Returns x normalised by its own statistics, and the statistics: mean and biased variance (without gradients).

    With mesh axes the statistics are those of x on all devices, from one all-reduce; the gradient takes another. The
    gradient is written out because autodiff of the two passes reads x three times more often.

    Args:
        x: values to normalise.
        scale: factor of the normalised values.
        bias: offset of the result.
        shift: a value near the mean, such as the running mean: it keeps the sums over devices small and precise.
        epsilon: added to the variance.
        axes: mesh axes that x is split over.
    """
    return _normalise_batch_forward(x, scale, bias, shift, epsilon, axes)[0]


def _normalise_batch_forward(x, scale, bias, shift, epsilon, axes):
    exact = x.astype(scale.dtype)
    reduced = tuple(range(x.ndim - 1))
    mean = exact.mean(reduced)  # c
    # Two passes, since E[x^2] - E[x]^2 cancels in float32.
    variance = jnp.square(exact - mean).mean(reduced)  # c
    if axes:
        offset = mean - shift
        offset, square = jax.lax.pmean(jnp.stack([offset, variance + jnp.square(offset)]), axes)  # c, c
        mean, variance = shift + offset, jnp.maximum(square - jnp.square(offset), 0)
    mean, variance = batch_statistics(mean), batch_statistics(variance)
    inverse = jax.lax.rsqrt(variance + epsilon)  # c
    y = ((exact - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse, shift)


def _normalise_batch_backward(epsilon, axes, residuals, cotangents):
    del epsilon
    x, scale, mean, inverse, shift = residuals
    gradient = cotangents[0].astype(scale.dtype)
    normal = (x.astype(scale.dtype) - mean) * inverse
    reduced = tuple(range(x.ndim - 1))
    sums = jnp.stack([gradient.sum(reduced), (gradient * normal).sum(reduced)])  # 2 c
    bias_mean, scale_mean = (jax.lax.psum(sums, axes) if axes else sums) / _count(x, axes)  # c, c
    x_gradient = (scale * inverse) * (gradient - bias_mean - normal * scale_mean)
    # The gradients of scale and bias are those of this device's clips, as for every other parameter.
    return x_gradient.astype(x.dtype), sums[1], sums[0], jnp.zeros_like(shift)


def _count(x: Array, axes: tuple[str, ...]) -> int:
    """Returns the number of values in a channel over all devices."""
    return x.size // x.shape[-1] * math.prod(jax.lax.axis_size(axis) for axis in axes)


normalise_batch.defvjp(_normalise_batch_forward, _normalise_batch_backward)


class ConvUnit(nnx.Module):
    """Convolution without bias, BatchNorm, ReLU (the reference's Unit3D), with TensorFlow's SAME padding."""

    def __init__(
        self, inputs: int, outputs: int, config: ConfigDict, kernel_shape: Window = (1, 1, 1), spatial_stride: int = 1
    ):
        model, dtypes = config.model, dtypes_of(config)
        self.kernel = nnx.Param(jnp.zeros((*kernel_shape, inputs, outputs), dtypes.param))  # t h w i o
        self.norm = BatchNorm(
            outputs, dtypes.param, epsilon=1e-3, momentum=model.batch_norm_momentum, sync=model.sync_batch_norm
        )
        self.spatial_stride = spatial_stride
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, "b t h w i"], *, train: bool) -> Float[Array, "b t h2 w2 o"]:
        """Applies the unit; h2 and w2 are h and w divided by the stride, rounded up."""
        y = product(convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.spatial_stride))
        return jax.nn.relu(self.norm(y, train=train))


class Inception(nnx.Module):
    """Four parallel paths, concatenated: 1x1; 1x1 then kernel; 1x1 then kernel; max pool then 1x1.

    The spatial block has 1x3x3 kernels and a 3x3x3 pool, which mixes neighbouring frames; the temporal block has 3x1x1
    kernels and pool.
    """

    def __init__(
        self, inputs: int, channels: Sequence[int], config: ConfigDict, *, kernel_shape: Window, pool_window: Window
    ):
        a, b, c, d, e, f = channels
        self.branch0 = ConvUnit(inputs, a, config)
        self.branch1_reduce = ConvUnit(inputs, b, config)
        self.branch1 = ConvUnit(b, c, config, kernel_shape)
        self.branch2_reduce = ConvUnit(inputs, d, config)
        self.branch2 = ConvUnit(d, e, config, kernel_shape)
        self.branch3 = ConvUnit(inputs, f, config)
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
