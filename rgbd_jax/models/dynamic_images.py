"""Dynamic images: each pools the motion of the frames that follow, in place of the frames themselves."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def dynamic_images(frames: UInt8[Array, "b t h w 3"], window: int) -> UInt8[Array, "b t h w 3"]:
    """Returns an image for each frame, rank-pooled from up to `window` frames from it on (frame k of m weighs 2k-m-1).

    Each image is scaled to its own range, without motion it is black. The last one pools the last two frames, as the
    one before: the reference samples one more frame instead.
    """
    pooled = jnp.einsum("st,bthwc->bshwc", _weights(frames.shape[1], window), frames, precision="highest")
    pooled = pooled.astype(jnp.int32)  # whole numbers, exact up to windows of 250 frames
    low, high = pooled.min(axis=(2, 3, 4), keepdims=True), pooled.max(axis=(2, 3, 4), keepdims=True)  # b t 1 1 1
    return (255 * (pooled - low) // jnp.maximum(high - low, 1)).astype(jnp.uint8)


def _weights(frames: int, window: int) -> Float[np.ndarray, "t t"]:
    weights = np.zeros((frames, frames), np.float32)
    for image in range(frames):
        first = max(min(image, frames - 2), 0)
        count = min(window, frames - first)
        weights[image, first : first + count] = 2 * np.arange(1, count + 1) - count - 1
    return weights
