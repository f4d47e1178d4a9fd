"""Sliding windows over clips, b t h w c, with the SAME padding of TensorFlow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

Window = tuple[int, int, int]  # t h w


def taps(x: Array, axis: int, size: int, step: int = 1) -> list[Array]:
    """Returns what each of the `size` places of a window sees that slides along an axis, with padding by zeros."""
    (padding,) = jax.lax.padtype_to_pads((x.shape[axis],), (size,), (step,), "SAME")
    padded = jnp.pad(x, [padding if a == axis else (0, 0) for a in range(x.ndim)])
    span = padded.shape[axis] - size + 1
    return [jax.lax.slice_in_dim(padded, start, start + span, step, axis) for start in range(size)]
