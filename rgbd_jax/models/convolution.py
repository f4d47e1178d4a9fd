"""Convolution of clips (b t h w c), each kernel shape by the formulation that is fastest for it."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float


def same_padding(length: int, size: int, step: int) -> tuple[int, int]:
    """Returns the padding (before, after) of TensorFlow's SAME rule: the output is length / step, rounded up."""
    total = max((-(-length // step) - 1) * step + size - length, 0)
    return total // 2, total - total // 2


def convolve(
    x: Float[Array, "b t h w i"], kernel: Float[Array, "kt kh kw i o"], spatial_stride: int = 1
) -> Float[Array, "b t h2 w2 o"]:
    """Convolves with SAME padding; the kernel is pointwise, spatial (1, k, k) or temporal (k, 1, 1)."""
    frames, height, width = kernel.shape[:3]
    if frames == height == width == spatial_stride == 1:
        return x @ kernel[0, 0, 0]
    if frames == 1:
        return _convolve_frames(x, kernel[0], spatial_stride)
    if height == width == spatial_stride == 1:
        return _convolve_time(x, kernel[:, 0, 0])
    raise ValueError(
        f"kernel {kernel.shape[:3]} with stride {spatial_stride} is neither pointwise, spatial nor temporal"
    )


def _convolve_frames(x: Array, kernel: Array, stride: int) -> Array:
    padding = [same_padding(length, size, stride) for length, size in zip(x.shape[2:4], kernel.shape[:2], strict=True)]
    frames = rearrange(x, "b t h w i -> (b t) h w i")
    y = jax.lax.conv_general_dilated(
        frames, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0])


def _convolve_time(x: Array, kernel: Array) -> Array:
    length, size = x.shape[1], kernel.shape[0]
    padded = jnp.pad(x, [(0, 0), same_padding(length, size, 1), (0, 0), (0, 0), (0, 0)])
    taps = jnp.stack([padded[:, start : start + length] for start in range(size)])  # k b t h w i
    return jnp.einsum("kbthwi,kio->bthwo", taps, kernel)
