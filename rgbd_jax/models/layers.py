"""Building blocks of the networks: linear maps, normalisation, dropout, convolution units and inception blocks.

BatchNorm uses the statistics of the batch after `nnx.Module.train()`, the running ones by default.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from rgbd_jax.models.ops import Window, convolve, max_pool

Function = TypeVar("Function", bound=Callable)

PRODUCT, STATISTICS = "product", "batch_statistics"  # names of values that rematerialisation may store
# Batch statistics are always stored: they are small, and recomputing them would repeat an all-reduce.
STORED = {"cheap": (PRODUCT, STATISTICS), "all": (STATISTICS,)}


def remat(policy: str, function: Function) -> Function:
    """Returns a function of modules and arrays that recomputes its intermediate values in the backward pass.

    The policy selects them: "none", "cheap" (all but the results of convolutions and linear maps) or "all".
    """
    if policy == "none":
        return function
    return nnx.remat(function, policy=jax.checkpoint_policies.save_only_these_names(*STORED[policy]))


class ClipRngs:
    """A stream of random keys in training, one for each clip.

    Draws for a clip depend on its own key alone: they are the same on any number of devices and processes, and
    whichever clips share the batch.
    """

    def __init__(self, keys: Key[Array, "b"]):
        self._keys = keys
        self._count = 0

    def next_keys(self) -> Key[Array, "b"]:
        """Returns new keys, one for each clip."""
        self._count += 1
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._keys, self._count)


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
        y = checkpoint_name(x.astype(self.dtype) @ self.kernel[...].astype(self.dtype), PRODUCT)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def layer_norm(features: int, dtypes: DTypes) -> nnx.LayerNorm:
    """Returns a normalisation of the last axis with PyTorch's epsilon; its statistics are float32 or wider."""
    compute, param = dtypes
    return nnx.LayerNorm(
        features, epsilon=1e-5, dtype=compute, param_dtype=param, use_fast_variance=False, rngs=nnx.Rngs(0)
    )


class Dropout(nnx.Module):
    """Sets a fraction of the values to zero in training and scales up the rest, with a key for each clip."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: Float[Array, "b *rest"], rngs: ClipRngs | None) -> Float[Array, "b *rest"]:
        """Returns x with values dropped; x itself without `rngs`."""
        if rngs is None or not self.rate:
            return x
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(rngs.next_keys())
        return jnp.where(kept, x / (1 - self.rate), 0)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics (unbiased variance).

    Statistics are computed in the parameters' dtype. Inside `jax.shard_map` they are those of the whole batch over all
    devices, or of each device's part (`config.model.sync_batch_norm`). `momentum` is the fraction of a batch's
    statistics in the running ones, as in PyTorch.
    """

    def __init__(self, features: int, config: ConfigDict, *, epsilon: float, momentum: float):
        dtype = dtypes_of(config).param
        self.scale = nnx.Param(jnp.ones(features, dtype))
        self.bias = nnx.Param(jnp.zeros(features, dtype))
        self.mean = nnx.BatchStat(jnp.zeros(features, dtype))
        self.variance = nnx.BatchStat(jnp.ones(features, dtype))
        self.epsilon, self.momentum, self.sync = epsilon, momentum, config.model.sync_batch_norm
        self.use_running_average = True

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalises x; in training by the batch's own statistics, which also update the running ones."""
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
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

    With mesh axes, over which x is split, the statistics are those of x on all devices, from one all-reduce; the
    gradient takes another. `shift` is a value near the mean, such as the running mean: it keeps the sums over devices
    small and precise. The gradient is written out because autodiff of the two passes reads x three times more often.
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
    mean, variance = checkpoint_name(mean, STATISTICS), checkpoint_name(variance, STATISTICS)
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
        dtypes = dtypes_of(config)
        self.kernel = nnx.Param(jnp.zeros((*kernel_shape, inputs, outputs), dtypes.param))  # t h w i o
        self.norm = BatchNorm(outputs, config, epsilon=1e-3, momentum=config.model.batch_norm_momentum)
        self.spatial_stride = spatial_stride
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h2 w2 o"]:
        """Applies the unit; h2 and w2 are h and w divided by the stride, rounded up."""
        y = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.spatial_stride)
        return jax.nn.relu(self.norm(checkpoint_name(y, PRODUCT)))


class Inception(nnx.Module):
    """Four parallel paths, concatenated: 1x1; 1x1 then kernel; 1x1 then kernel; max pool then 1x1.

    The spatial block has 1x3x3 kernels and a 3x3x3 pool, which mixes neighbouring frames, and may begin with a pool of
    stride 2; the temporal block has 3x1x1 kernels and pool.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        config: ConfigDict,
        *,
        kernel_shape: Window,
        pool_window: Window,
        pool_before: Window | None = None,
    ):
        a, b, c, d, e, f = channels
        self.branch0 = ConvUnit(inputs, a, config)
        self.branch1_reduce = ConvUnit(inputs, b, config)
        self.branch1 = ConvUnit(b, c, config, kernel_shape)
        self.branch2_reduce = ConvUnit(inputs, d, config)
        self.branch2 = ConvUnit(d, e, config, kernel_shape)
        self.branch3 = ConvUnit(inputs, f, config)
        self.pool_window, self.pool_before = pool_window, pool_before
        self.outputs = a + c + e + f

    def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h2 w2 o"]:
        """Applies the four paths to x and concatenates their channels."""
        if self.pool_before is not None:
            x = max_pool(x, self.pool_before, (1, 2, 2))
        paths = [
            self.branch0(x),
            self.branch1(self.branch1_reduce(x)),
            self.branch2(self.branch2_reduce(x)),
            self.branch3(max_pool(x, self.pool_window)),
        ]
        return jnp.concatenate(paths, axis=-1)  # b t h2 w2 o
