"""Heat maps of the FRP module: motion in a window of frames by rank pooling, computed on the accelerator."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from rgbd_jax.models.mixing import Mixture


def heat_maps(
    frames: UInt8[Array, "b t h w 3"],
    window: int,
    mixture: Mixture | None = None,
    partner: UInt8[Array, "b t h w 3"] | None = None,
) -> Float[Array, "b t h w 1"]:
    """Computes one heat map a frame from the window of frames that ends there (the paper's FRP module).

    Each window is rank-pooled (frame k of w weighs 2k - w - 1), cut at zero, and scaled to [0, 1]; its luminance G and
    G's opened bright part S give the heat (G + S) * S. The weights sum to zero and the result is divided by its
    maximum, so offset and scale of the reference's normalised frames cancel and the uint8 values give the same sums as
    exact integers.

    For mixed clips a frame's window is pooled in each of the two clips, and the sums are mixed like the frame. For
    mixup this equals pooling the blended frames, since pooling is linear, but is exactly 0 where neither clip moves.
    For ShuffleMix a frame has the heat map of the clip that it comes from: pooled from the shuffled frames, it would
    show where two scenes differ, which is not motion and never occurs in evaluation.

    Args:
      frames: Frames as the network sees them, before normalisation, uint8[b t h w 3].
      window: Number of frames w that a heat map pools, at least 1 (static under `jax.jit`).
      mixture: How the clips are mixed; `frames` are those before mixing.
      partner: Frames of the clips that they are mixed with.

    Returns:
      Heat maps, float32[b t h w 1], in [0, 2]. Frames before the first full window are 0; so are windows without
      motion, and all frames of a clip shorter than the window.

    Raises:
      ValueError: `window` is below 1, or `frames` is not uint8[b t h w 3].
    """
    if window < 1:
        raise ValueError(f"config.model.frp_window is {window}; a heat map pools at least 1 frame")
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != jnp.uint8:
        raise ValueError(f"heat maps need frames uint8[b t h w 3], not {frames.dtype}{list(frames.shape)}")
    b, t, h, w, _ = frames.shape
    n = t - window + 1  # full windows
    if n < 1:
        return jnp.zeros((b, t, h, w, 1), jnp.float32)

    pooled = _rank_pool(frames, window)
    if mixture is not None and partner is not None:
        pooled = mixture.blend(pooled, _rank_pool(partner, window), first=window - 1)
    pooled = jnp.maximum(pooled, 0)
    pooled -= pooled.min(axis=(2, 3, 4), keepdims=True)
    peak = pooled.max(axis=(2, 3, 4), keepdims=True)  # b n 1 1 1
    smallest = 1 if mixture is None else jnp.finfo(jnp.float32).tiny  # the divisor where there is no motion
    unit = pooled.astype(jnp.float32) / jnp.maximum(peak, smallest).astype(jnp.float32)
    red, green, blue = jnp.moveaxis(unit, -1, 0)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue  # b n h w; the digits of the reference

    static = jnp.where(grey > grey.mean(axis=(2, 3), keepdims=True), grey, 0.0)
    static = _dilate_3x3(_erode_2x2(static))
    static -= static.min(axis=(2, 3), keepdims=True)
    peak = static.max(axis=(2, 3), keepdims=True)
    static /= jnp.where(peak > 0, peak, 1)

    heat = (grey + static) * static
    return jnp.pad(heat, ((0, 0), (window - 1, 0), (0, 0), (0, 0)))[..., None]


def _rank_pool(frames: UInt8[Array, "b t h w 3"], window: int) -> Int[Array, "b n h w 3"]:
    """Returns the weighted sum of the frames of every full window."""
    n = frames.shape[1] - window + 1
    # One shifted slice per weight: XLA fuses them into one pass; integers were 3 to 5 times as fast as float32.
    pooled = jnp.zeros((frames.shape[0], n, *frames.shape[2:]), jnp.int32)
    for k in range(1, window + 1):
        pooled += (2 * k - window - 1) * frames[:, k - 1 : k - 1 + n].astype(jnp.int32)
    return pooled


def _erode_2x2(images: Float[Array, "b n h w"]) -> Float[Array, "b n h w"]:
    """Minimum over each pixel and its upper and left neighbours: OpenCV's erosion, anchor (1, 1), borders ignored."""
    for axis in (2, 3):  # one axis after the other: 2 comparisons instead of 4
        images = _along(images, axis, jnp.inf, jnp.minimum, size=2, before=1, after=0)
    return images


def _dilate_3x3(images: Float[Array, "b n h w"]) -> Float[Array, "b n h w"]:
    """Maximum over each pixel and its 8 neighbours: OpenCV's dilation, borders ignored."""
    for axis in (2, 3):
        images = _along(images, axis, -jnp.inf, jnp.maximum, size=3, before=1, after=1)
    return images


def _along(images, axis, initial, operation, *, size, before, after):
    """Reduces windows of `size` along one axis, padded with `initial`.

    As shifted slices: XLA fuses them, and ONNX has no minimum over windows.
    """
    length, padding = images.shape[axis], [(0, 0)] * images.ndim
    padding[axis] = (before, after)
    padded = jnp.pad(images, padding, constant_values=initial)
    shifted = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(size)]
    return functools.reduce(operation, shifted)
