"""Convolution of clips (b t h w c), each kernel shape by the formulation that is fastest for it."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Frames whose patches are made at once; on CPUs 4 took 0.7 to 1.2 times the time of 1, by the shape.
FRAMES_AT_A_TIME = 4


def same_padding(length: int, size: int, step: int) -> tuple[int, int]:
    """Returns the padding (before, after) of TensorFlow's SAME rule: the output is length / step, rounded up."""
    total = max((-(-length // step) - 1) * step + size - length, 0)
    return total // 2, total - total // 2


def convolve(
    x: Float[Array, "b t h w i"], kernel: Float[Array, "kt kh kw i o"], spatial_stride: int = 1
) -> Float[Array, "b t h2 w2 o"]:
    """Convolves with SAME padding; the kernel is pointwise, spatial (1, k, k) or temporal (k, 1, 1)."""
    frames, height, width = kernel.shape[:3]
    if frames == height == width == spatial_stride == 1 and x.shape[2] == x.shape[3] == 1:
        return x @ kernel[0, 0, 0]
    if frames == 1:
        return _convolve_frames(x, kernel[0], spatial_stride)
    if height == width == spatial_stride == 1:
        return _convolve_time(x, kernel[:, 0, 0])
    raise ValueError(
        f"kernel {kernel.shape[:3]} with stride {spatial_stride} is neither pointwise, spatial nor temporal"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_frames(x: Array, kernel: Array, stride: int) -> Array:
    if kernel.shape[0] == kernel.shape[1] == stride == 1:
        return x @ kernel[0, 0]
    frames = rearrange(x, "b t h w i -> (b t) h w i")
    y = jax.lax.conv_general_dilated(
        frames,
        kernel,
        (stride, stride),
        _paddings(x.shape[2:4], kernel.shape[:2], stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0])


def _convolve_frames_forward(x, kernel, stride):
    return _convolve_frames(x, kernel, stride), (x, kernel)


def _convolve_frames_backward(stride, saved, gradient):
    x, kernel = saved

    def by_autodiff(x, gradient):
        return jax.linear_transpose(lambda kernel: _convolve_frames.fun(x, kernel, stride), kernel)(gradient)[0]

    (x_gradient,) = jax.linear_transpose(lambda x: _convolve_frames.fun(x, kernel, stride), x)(gradient)
    kernel_gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_kernel_gradient_from_patches, size=kernel.shape[:2], stride=stride),
        default=by_autodiff,
    )
    return x_gradient, kernel_gradient


_convolve_frames.defvjp(_convolve_frames_forward, _convolve_frames_backward)


def _kernel_gradient_from_patches(x: Array, gradient: Array, size: tuple[int, int], stride: int) -> Array:
    """Returns the kernel's gradient as products of matrices, some frames at a time so that their patches stay in cache.

    XLA's own, a convolution whose kernel is as large as the frames, takes 3 to 8 times as long on CPUs.
    """
    frames = math.gcd(x.shape[0] * x.shape[1], FRAMES_AT_A_TIME)
    height, width = gradient.shape[2:4]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(total, part):
        some, their_gradient = part  # n i h w, (n h w) o
        some = jnp.pad(jnp.moveaxis(some, -1, 0), [(0, 0), (0, 0), *_paddings(x.shape[2:4], size, stride)])  # i n h w
        taps = [
            some[
                :,
                :,
                row : row + (height - 1) * stride + 1 : stride,
                column : column + (width - 1) * stride + 1 : stride,
            ]
            for row in range(size[0])
            for column in range(size[1])
        ]
        patches = jnp.stack(taps).reshape(len(taps) * x.shape[-1], -1)  # (kh kw i) (n h w)
        return total + jnp.matmul(patches, their_gradient, preferred_element_type=wide), None

    # Like the gradient: inside `jax.shard_map` each device has zeros of its own.
    zeros = jnp.zeros_like(gradient, wide, shape=(size[0] * size[1] * x.shape[-1], gradient.shape[-1]))
    parts = (
        x.reshape(-1, frames, *x.shape[2:]),  # parts n h w i
        gradient.reshape(-1, frames * height * width, gradient.shape[-1]),  # parts (n h w) o
    )
    total, _ = jax.lax.scan(add, zeros, parts)
    return total.reshape(*size, x.shape[-1], gradient.shape[-1]).astype(x.dtype)


def _paddings(lengths: Sequence[int], sizes: Sequence[int], stride: int) -> list[tuple[int, int]]:
    return [same_padding(length, size, stride) for length, size in zip(lengths, sizes, strict=True)]


def _convolve_time(x: Array, kernel: Array) -> Array:
    length, size = x.shape[1], kernel.shape[0]
    padded = jnp.pad(x, [(0, 0), same_padding(length, size, 1), (0, 0), (0, 0), (0, 0)])
    taps = jnp.stack([padded[:, start : start + length] for start in range(size)])  # k b t h w i
    return jnp.einsum("kbthwi,kio->bthwo", taps, kernel)
