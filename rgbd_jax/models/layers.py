"""Building blocks of the networks: linear maps, normalisation, dropout, convolution units and inception blocks.

BatchNorm uses the statistics of the batch after `nnx.Module.train()`, the running ones by default.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from rgbd_jax.models.ops import operations
from rgbd_jax.models.ops.convolution import PRODUCT
from rgbd_jax.models.ops.normalisation import STATISTICS, Norm, Normalised, NormalisedAndPooled, values_per_channel
from rgbd_jax.models.ops.pooling import POOLED
from rgbd_jax.models.ops.windows import Window

Function = TypeVar("Function", bound=Callable)
Result = TypeVar("Result", Normalised, NormalisedAndPooled)

# Batch statistics are always stored: they are small, and recomputing them would repeat an all-reduce.
STORED = {"cheap": (PRODUCT, POOLED, STATISTICS), "all": (STATISTICS,)}


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
        y = checkpoint_name(x.astype(self.dtype) @ self.kernel[...].astype(self.dtype), PRODUCT)
        # Added in the parameters' dtype, in which the gradient of the bias is then summed.
        return y if self.bias is None else (y.astype(self.bias.dtype) + self.bias[...]).astype(self.dtype)


class LayerNorm(nnx.LayerNorm):
    """Normalises the last axis with PyTorch's epsilon, in the parameters' dtype; the result has the compute dtype."""

    def __init__(self, features: int, dtypes: DTypes):
        param = dtypes.param
        super().__init__(
            features, epsilon=1e-5, dtype=param, param_dtype=param, use_fast_variance=False, rngs=nnx.Rngs(0)
        )
        self.compute_dtype = dtypes.compute

    def __call__(self, x: Float[Array, "*batch c"], *, mask: Array | None = None) -> Float[Array, "*batch c"]:
        options = {} if mask is None else {"mask": mask}  # an export replaces Flax's call by one without a mask
        return super().__call__(x, **options).astype(self.compute_dtype)


class Dropout(nnx.Module):
    """Sets a fraction of the values to zero in training and scales up the rest, with a key for each clip."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: Float[Array, "b *rest"], rngs: ClipRngs | None) -> Float[Array, "b *rest"]:
        if rngs is None or not self.rate:
            return x
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(rngs.next_keys())
        return jnp.where(kept, x / (1 - self.rate), 0)


class BatchNormReLU(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics (unbiased variance), and ReLU.

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
        self.ops = operations(config)
        self.use_running_average = True

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalises x; in training by the batch's own statistics, which also update the running ones."""
        if self.use_running_average:
            factor, offset = self.folded()
            return jax.nn.relu(x * factor.astype(x.dtype) + offset.astype(x.dtype))
        return normalise_together([self], self.ops.batch_norm_relu, x).values

    def folded(self) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
        """Returns factor and offset of each channel in evaluation; a convolution may take them into its kernel."""
        factor = self.scale[...] * jax.lax.rsqrt(self.variance[...] + self.epsilon)  # c
        return factor, self.bias[...] - self.mean[...] * factor

    def update(self, mean: Float[Array, "c"], variance: Float[Array, "c"], count: int) -> None:
        """Updates the running statistics by those of a batch; `count` is the number of values in a channel."""
        unbiased = variance * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (mean - self.mean[...])
        self.variance[...] += self.momentum * (unbiased - self.variance[...])


def normalise_together(
    norms: Sequence[BatchNormReLU], operation: Callable[..., Result], x: Float[Array, "*batch c"]
) -> Result:
    """Applies layers in training, of which each has its part of the channels, by one operation (see `Operations`)."""
    first = norms[0]
    axes = jax.sharding.get_abstract_mesh().manual_axes if first.sync else ()
    scale, bias, shift = (jnp.concatenate([getattr(n, name)[...] for n in norms]) for name in ("scale", "bias", "mean"))
    normalised = operation(x, Norm(scale, bias, shift, first.epsilon, axes))
    count = values_per_channel(normalised.values, axes)
    statistics = (split_channels(x, norms) for x in (normalised.mean, normalised.variance))
    for norm, mean, variance in zip(norms, *statistics, strict=True):
        norm.update(mean, variance, count)
    return normalised


def split_channels(x: Float[Array, "*batch c"], norms: Sequence[BatchNormReLU]) -> list[Float[Array, "*batch n"]]:
    """Returns the part of the channels that each layer normalises."""
    ends = itertools.accumulate(norm.scale.size for norm in norms)
    return jnp.split(x, list(ends)[:-1], axis=-1)


class ConvUnit(nnx.Module):
    """Convolution without bias, BatchNorm, ReLU (the reference's Unit3D), with TensorFlow's SAME padding."""

    def __init__(
        self, inputs: int, outputs: int, config: ConfigDict, kernel_shape: Window = (1, 1, 1), spatial_stride: int = 1
    ):
        dtypes = dtypes_of(config)
        self.kernel = nnx.Param(jnp.zeros((*kernel_shape, inputs, outputs), dtypes.param))  # t h w i o
        self.norm = BatchNormReLU(outputs, config, epsilon=1e-3, momentum=config.model.batch_norm_momentum)
        self.spatial_stride = spatial_stride
        self.dtype = dtypes.compute
        self.ops = operations(config)

    def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h2 w2 o"]:
        """Applies the unit; h2 and w2 are h and w divided by the stride, rounded up."""
        if not self.norm.use_running_average:
            return self._normalised(self.ops.convolve_batch_norm_relu, x).values
        offset = self.norm.folded()[1].astype(self.dtype)  # o
        return self.ops.convolve_relu(x.astype(self.dtype), self.effective_kernel(), offset, self.spatial_stride)

    def before_max_pool(
        self, x: Float[Array, "b t h w i"], window: Window, stride: Window
    ) -> tuple[Float[Array, "b t h2 w2 o"], Float[Array, "b t3 h3 w3 o"]]:
        """Applies the unit and pools the result; returns both."""
        if self.norm.use_running_average:
            y = self(x)
            return y, self.ops.max_pool(y, window, stride)
        result = self._normalised(self.ops.convolve_batch_norm_relu_max_pool, x, window=window, stride=stride)
        return result.values, result.pooled

    def after_max_pool(self, x: Float[Array, "b t h w i"], window: Window, frames: int) -> Float[Array, "b t h w o"]:
        """Pools x, clips of so many frames, with a stride of 1, and applies the unit."""

        def max_pool(x: Array) -> Array:
            return self.ops.max_pool(x.reshape(-1, frames, *x.shape[2:]), window).reshape(x.shape)

        if self.norm.use_running_average or not self.ops.pooled_again:
            return self(max_pool(x))

        def convolved(unit: ConvUnit, x: Array) -> Array:
            return unit.convolved(max_pool(x))

        return self.norm(checkpoint_name(remat("cheap", convolved)(self, x), PRODUCT))

    def effective_kernel(self) -> Float[Array, "t h w i o"]:
        """Returns the kernel in the compute dtype; in evaluation with BatchNorm's factor in it."""
        kernel = self.kernel[...]
        if self.norm.use_running_average:
            kernel *= self.norm.folded()[0]
        return kernel.astype(self.dtype)

    def _normalised(self, operation: Callable[..., Result], x: Float[Array, "b t h w i"], **pooling: Window) -> Result:
        """Applies an operation for training that begins with the convolution."""
        sizes = {"kernel": self.effective_kernel(), "spatial_stride": self.spatial_stride, **pooling}
        return normalise_together([self.norm], functools.partial(operation, **sizes), x.astype(self.dtype))

    def convolved(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h2 w2 o"]:
        """Applies the convolution alone, with `effective_kernel`."""
        return self.ops.convolve(x.astype(self.dtype), self.effective_kernel(), self.spatial_stride)


def apply_side_by_side(units: Sequence[ConvUnit], x: Float[Array, "b t h w i"]) -> list[Float[Array, "b t h w o"]]:
    """Applies pointwise units to the same input; on some platforms by one convolution and one normalisation."""
    first, norms = units[0], [unit.norm for unit in units]
    if not first.ops.joined_convolutions:
        return [unit(x) for unit in units]
    kernel = jnp.concatenate([unit.effective_kernel() for unit in units], axis=-1)  # 1 1 1 i sum(o)
    y = first.ops.convolve(x.astype(first.dtype), kernel)  # b t h w sum(o)
    if first.norm.use_running_average:
        offset = jnp.concatenate([norm.folded()[1] for norm in norms])
        y = jax.nn.relu(y + offset.astype(y.dtype))
    else:
        y = normalise_together(norms, first.ops.batch_norm_relu, checkpoint_name(y, PRODUCT)).values
    return split_channels(y, norms)


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
        self.ops = operations(config)

    def __call__(self, x: Float[Array, "b t h w i"], frames: int | None = None) -> Float[Array, "b t h2 w2 o"]:
        """Applies the four paths to x and concatenates their channels.

        x may hold the clips of `frames` frames one after the other as one clip; no pool reaches over their ends.
        """
        if self.pool_before is not None:
            x = self.ops.max_pool(x, self.pool_before, (1, 2, 2))
        reduced = apply_side_by_side([self.branch0, self.branch1_reduce, self.branch2_reduce], x)

        paths = [
            reduced[0],
            self.branch1(reduced[1]),
            self.branch2(reduced[2]),
            self.branch3.after_max_pool(x, self.pool_window, frames or x.shape[1]),
        ]
        return jnp.concatenate(paths, axis=-1)  # b t h2 w2 o
