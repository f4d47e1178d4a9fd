"""Convolution of clips."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from rgbd_jax.models.ops.windows import taps

# Frames whose patches are extracted together: on CPUs 4 took 0.7 to 1.2 times as long as 1, depending on the shape.
FRAMES_PER_CHUNK = 4

PRODUCT = "product"  # name of values that rematerialisation may store


def convolve(
    x: Float[Array, "b t h w i"], kernel: Float[Array, "kt kh kw i o"], spatial_stride: int = 1
) -> Float[Array, "b t h2 w2 o"]:
    """Convolves with SAME padding; the kernel is pointwise, spatial (1, k, k) or temporal (k, 1, 1)."""
    if kernel.shape[0] == 1:
        return _convolve_frames(x, kernel[0], spatial_stride)
    return _convolve_time(x, kernel)


def convolve_on_cpu(
    x: Float[Array, "b t h w i"], kernel: Float[Array, "kt kh kw i o"], spatial_stride: int = 1
) -> Float[Array, "b t h2 w2 o"]:
    """`convolve`, with the gradient of the kernel from patches."""
    if kernel.shape[0] > 1 or x.shape[2:4] == (1, 1):
        return convolve(x, kernel, spatial_stride)
    return _convolve_frames_on_cpu(x, kernel[0], spatial_stride)


def with_relu(convolve: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `convolve` followed by an offset for each channel, after the kernel in the arguments, and ReLU."""

    def convolve_relu(x: Array, kernel: Array, offset: Array, spatial_stride: int = 1) -> Array:
        return jax.nn.relu(convolve(x, kernel, spatial_stride) + offset)

    return convolve_relu


def _convolve_by_cudnn(x: Array, kernel: Array, spatial_stride: int) -> Array:
    """`convolve` for evaluation on GPUs: cuDNN also adds the offset and applies ReLU; a matrix product does not."""
    if kernel.shape[0] > 1 or x.shape[2:4] == (1, 1):
        return convolve(x, kernel, spatial_stride)
    return _convolution_of_frames(x, kernel[0], spatial_stride)


convolve_relu_on_gpu = with_relu(_convolve_by_cudnn)


def _convolve_time(x: Array, kernel: Array) -> Array:
    seen = jnp.stack(taps(x, 1, kernel.shape[0]))  # k b t h w i
    return jnp.einsum("kbthwi,kio->bthwo", seen, rearrange(kernel, "k 1 1 i o -> k i o"))


def _convolve_frames(x: Array, kernel: Array, stride: int) -> Array:
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ kernel[0, 0]
    return _convolution_of_frames(x, kernel, stride)


def _convolution_of_frames(x: Array, kernel: Array, stride: int) -> Array:
    frames = rearrange(x, "b t h w i -> (b t) h w i")
    axes = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(frames, kernel, (stride, stride), "SAME", dimension_numbers=axes)
    return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0])


_convolve_frames_on_cpu = jax.custom_vjp(_convolve_frames, nondiff_argnums=(2,))


def _forward(x, kernel, stride):
    return _convolve_frames(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
    x, kernel = saved
    (x_gradient,) = jax.linear_transpose(lambda x: _convolve_frames(x, kernel, stride), x)(gradient)
    return x_gradient, _kernel_gradient_from_patches(x, gradient, kernel.shape[:2], stride)


_convolve_frames_on_cpu.defvjp(_forward, _backward)


def _kernel_gradient_from_patches(x: Array, gradient: Array, size: tuple[int, int], stride: int) -> Array:
    """Returns the kernel's gradient as matrix products (im2col), a few frames at a time so that patches stay in cache.

    XLA's own formulation, a convolution whose kernel is as large as the frames, takes 3 to 8 times as long on CPUs.
    """
    frames = math.gcd(x.shape[0] * x.shape[1], FRAMES_PER_CHUNK)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(total, chunk):
        x_chunk, gradient_chunk = chunk  # n h w i, (n h2 w2) o
        rows = taps(jnp.moveaxis(x_chunk, -1, 0), 2, size[0], stride)  # kh of i n h2 w
        seen = jnp.stack([tap for row in rows for tap in taps(row, 3, size[1], stride)])  # (kh kw) i n h2 w2
        patches = seen.reshape(math.prod(size) * x.shape[-1], -1)  # (kh kw i) (n h2 w2)
        return total + jnp.matmul(patches, gradient_chunk, preferred_element_type=wide), None

    # Made from the gradient, so that inside `jax.shard_map` the zeros vary over the mesh as the gradient does.
    zeros = jnp.zeros_like(gradient, wide, shape=(math.prod(size) * x.shape[-1], gradient.shape[-1]))
    x_chunks = x.reshape(-1, frames, *x.shape[2:])  # chunks n h w i
    gradient_chunks = gradient.reshape(len(x_chunks), -1, gradient.shape[-1])  # chunks (n h2 w2) o
    total, _ = jax.lax.scan(add, zeros, (x_chunks, gradient_chunks))
    return total.reshape(*size, x.shape[-1], gradient.shape[-1]).astype(x.dtype)
