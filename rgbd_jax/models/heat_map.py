"""Frame-wise rank pooling attention (FRP): heat maps of motion, and how they weight the features of each frame."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from rgbd_jax.models.layers import DTypes
from rgbd_jax.models.mixing import Mixture
from rgbd_jax.models.ops.pooling import max_of_slices


class FRP(nnx.Module):
    """Adds to x a learned mixture of x and of x weighted by the heat map: x + (w0 x + w1 x (heat + 1))."""

    def __init__(self, dtypes: DTypes):
        self.mixture = nnx.Param(jnp.asarray([1.0, 0.0], dtypes.param))
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, "b t h w c"], heat: Float[Array, "b t h w 1"]) -> Float[Array, "b t h w c"]:
        """Returns the weighted features; the heat map must have the size of x (see `pool_heat_map`)."""
        keep, attend = self.mixture[...]
        factor = 1 + keep + attend * (heat.astype(keep.dtype) + 1)  # b t h w 1
        # In the parameters' dtype, since the gradients of the two weights are sums over all values of x; both are taken
        # of the gradient of the factors, for which the barrier keeps XLA from summing over x twice.
        factor = jax.lax.optimization_barrier(factor)
        return (x.astype(keep.dtype) * factor).astype(self.dtype)


def pool_heat_map(heat: Float[Array, "b t h w 1"], height: int, width: int) -> Float[Array, "b t h2 w2 1"]:
    """Max-pools a heat map by 2x2 until it is no larger than height x width.

    Sizes are halved rounding up, as the network's strided layers do. The reference rounds down: the same for even
    sizes, while it fails on others.
    """
    while heat.shape[2] > height or heat.shape[3] > width:
        heat = max_of_slices(heat, (1, 2, 2), (1, 2, 2))
    return heat


def heat_maps(
    frames: UInt8[Array, "b t h w 3"],
    window: int,
    mixture: Mixture | None = None,
    partner: UInt8[Array, "b t h w 3"] | None = None,
    max_pool: Callable = max_of_slices,
) -> Float[Array, "b t h w 1"]:
    """Returns one heat map a frame, float32 in [0, 2], from the window of frames that ends there.

    Each window is rank-pooled (frame k of w weighs 2k - w - 1), cut at zero, and scaled to [0, 1]; its luminance G and
    G's opened bright part S give the heat (G + S) * S. The weights sum to zero and the result is divided by its
    maximum, so offset and scale of the reference's normalised frames cancel and the uint8 values give the same sums as
    exact integers. Frames before the first full window are 0, and so are windows without motion.

    With a `mixture`, a frame's window is pooled in each of the two clips, `frames` and `partner` as they are before
    mixing, and the sums are mixed like the frame. For mixup this equals pooling the blended frames, since pooling is
    linear, but is exactly 0 where neither clip moves. For ShuffleMix a frame has the heat map of the clip that it comes
    from: pooled from the shuffled frames, it would show where two scenes differ, which is not motion and never occurs
    in evaluation.

    Raises:
        ValueError: the frames are not uint8.
    """
    if frames.dtype != jnp.uint8:
        raise ValueError(f"heat maps need frames of uint8, before normalisation; found {frames.dtype}")
    if frames.shape[1] < window:
        return jnp.zeros((*frames.shape[:-1], 1), jnp.float32)

    pooled = _rank_pool(frames, window)  # b n h w 3
    if mixture is not None and partner is not None:
        pooled = mixture.blend(pooled, _rank_pool(partner, window), first=window - 1)
    pooled = jnp.maximum(pooled.astype(jnp.float32), 0)  # exact
    low, high = pooled.min(axis=(2, 3, 4), keepdims=True), pooled.max(axis=(2, 3, 4), keepdims=True)  # b n 1 1 1
    smallest = 1 if mixture is None else jnp.finfo(jnp.float32).tiny  # the divisor where there is no motion
    unit = (pooled - low) / jnp.maximum(high - low, smallest)
    red, green, blue = (unit[..., channel, None] for channel in range(3))
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue  # b n h w 1; the digits of the reference

    static = jnp.where(grey > grey.mean(axis=(2, 3), keepdims=True), grey, 0.0)
    static = max_pool(_erode_2x2(static), (1, 3, 3))  # OpenCV's dilation: no value is below the padding's 0
    low, high = static.min(axis=(2, 3), keepdims=True), static.max(axis=(2, 3), keepdims=True)  # b n 1 1 1
    static = (static - low) / jnp.where(high > low, high - low, 1)
    return jnp.pad((grey + static) * static, ((0, 0), (window - 1, 0), (0, 0), (0, 0), (0, 0)))


def _rank_pool(frames: UInt8[Array, "b t h w 3"], window: int) -> Int[Array, "b n h w 3"]:
    n = frames.shape[1] - window + 1
    largest = 255 * (window**2 // 4)  # the sum where frames of a positive weight are white and the others black
    dtype = jnp.int16 if largest <= jnp.iinfo(jnp.int16).max else jnp.int32
    # One shifted slice per weight: XLA fuses them into one pass; integers were 3 to 5 times as fast as float32.
    weighted = ((2 * k - window + 1) * frames[:, k : k + n].astype(dtype) for k in range(window))
    return functools.reduce(jnp.add, weighted)


def _erode_2x2(images: Float[Array, "b n h w 1"]) -> Float[Array, "b n h w 1"]:
    """Minimum over each pixel and its upper and left neighbours: OpenCV's erosion, anchor (1, 1), borders ignored."""
    for axis in (2, 3):
        # Not `jax.lax.pad` with -1 at the end: the exporter to ONNX knows no padding of a batch of any size but this.
        padded = jnp.pad(images, [(int(a == axis), 0) for a in range(images.ndim)], constant_values=jnp.inf)
        images = jnp.minimum(images, jax.lax.slice_in_dim(padded, 0, images.shape[axis], axis=axis))
    return images
