"""Convolution and max pooling of clips (b t h w c), each by the formulation that is fastest on the platform."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

Window = tuple[int, int, int]  # t h w

# Frames whose patches are extracted together: on CPUs 4 took 0.7 to 1.2 times as long as 1, depending on the shape.
FRAMES_PER_CHUNK = 4


def convolve(
    x: Float[Array, "b t h w i"], kernel: Float[Array, "kt kh kw i o"], spatial_stride: int = 1
) -> Float[Array, "b t h2 w2 o"]:
    """Convolves with SAME padding; the kernel is pointwise, spatial (1, k, k) or temporal (k, 1, 1)."""
    if kernel.shape[:3] == (1, 1, 1) and x.shape[2:4] == (1, 1):
        return x @ kernel[0, 0, 0]
    if kernel.shape[0] == 1:
        return _convolve_frames(x, kernel[0], spatial_stride)
    taps = jnp.stack(_taps(x, 1, kernel.shape[0]))  # k b t h w i
    return jnp.einsum("kbthwi,kio->bthwo", taps, rearrange(kernel, "k 1 1 i o -> k i o"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_frames(x: Array, kernel: Array, stride: int) -> Array:
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ kernel[0, 0]
    frames = rearrange(x, "b t h w i -> (b t) h w i")
    axes = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(frames, kernel, (stride, stride), "SAME", dimension_numbers=axes)
    return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0])


def _convolve_frames_forward(x, kernel, stride):
    return _convolve_frames(x, kernel, stride), (x, kernel)


def _convolve_frames_backward(stride, saved, gradient):
    x, kernel = saved

    def by_autodiff(x, gradient):
        return jax.linear_transpose(lambda kernel: _convolve_frames.fun(x, kernel, stride), kernel)(gradient)[0]

    (x_gradient,) = jax.linear_transpose(lambda x: _convolve_frames.fun(x, kernel, stride), x)(gradient)
    from_patches = functools.partial(_kernel_gradient_from_patches, size=kernel.shape[:2], stride=stride)
    return x_gradient, jax.lax.platform_dependent(x, gradient, cpu=from_patches, default=by_autodiff)


_convolve_frames.defvjp(_convolve_frames_forward, _convolve_frames_backward)


def _kernel_gradient_from_patches(x: Array, gradient: Array, size: tuple[int, int], stride: int) -> Array:
    """Returns the kernel's gradient as matrix products (im2col), a few frames at a time so that patches stay in cache.

    XLA's own formulation, a convolution whose kernel is as large as the frames, takes 3 to 8 times as long on CPUs.
    """
    frames = math.gcd(x.shape[0] * x.shape[1], FRAMES_PER_CHUNK)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(total, chunk):
        x_chunk, gradient_chunk = chunk  # n h w i, (n h2 w2) o
        rows = _taps(jnp.moveaxis(x_chunk, -1, 0), 2, size[0], stride)  # kh of i n h2 w
        taps = jnp.stack([tap for row in rows for tap in _taps(row, 3, size[1], stride)])  # (kh kw) i n h2 w2
        patches = taps.reshape(math.prod(size) * x.shape[-1], -1)  # (kh kw i) (n h2 w2)
        return total + jnp.matmul(patches, gradient_chunk, preferred_element_type=wide), None

    # Made from the gradient, so that inside `jax.shard_map` the zeros vary over the mesh as the gradient does.
    zeros = jnp.zeros_like(gradient, wide, shape=(math.prod(size) * x.shape[-1], gradient.shape[-1]))
    x_chunks = x.reshape(-1, frames, *x.shape[2:])  # chunks n h w i
    gradient_chunks = gradient.reshape(len(x_chunks), -1, gradient.shape[-1])  # chunks (n h2 w2) o
    total, _ = jax.lax.scan(add, zeros, (x_chunks, gradient_chunks))
    return total.reshape(*size, x.shape[-1], gradient.shape[-1]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: Float[Array, "b t h w c"], window: Window, stride: Window = (1, 1, 1)) -> Float[Array, "b t2 h2 w2 c"]:
    """Max pooling over t, h, w with SAME padding by zeros, as the reference pads (zeros win over negative values).

    The axes are pooled one after the other as maxima of shifted slices: the same values, and a gradient without
    select-and-scatter, which is slow on CPUs. The residual is x alone: the winning slices are recomputed, since storing
    them would take several times the memory of all convolution outputs.
    """
    return _max_pool(x, window, stride, jnp.maximum)


def _max_pool_forward(x, window, stride):
    return max_pool(x, window, stride), x


def _max_pool_backward(window, stride, x, gradient):
    whole = functools.partial(_max_pool_gradient, window=window, stride=stride)
    by_frame = functools.partial(_max_pool_gradient_by_frame, window=window, stride=stride)
    on_cpu = whole if window[1:] == (1, 1) else by_frame
    return (jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=whole),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_pool_gradient(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    # Of equal values the first receives the gradient.
    _, pull = jax.vjp(lambda x: _max_pool(x, window, stride, lambda a, b: jnp.where(b > a, b, a)), x)
    return pull(gradient)[0]


def _max_pool_gradient_by_frame(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    """Returns the gradient with respect to x; the spatial part frame by frame, so that it fits a CPU's cache."""
    time, time_stride = (window[0], 1, 1), (stride[0], 1, 1)
    pixels, pixel_stride = (1, *window[1:]), (1, *stride[1:])
    pooled = _max_pool(x, time, time_stride, jnp.maximum)  # b t2 h w c
    frames = [a.reshape(-1, 1, 1, *a.shape[2:]) for a in (pooled, gradient)]  # (b t2) 1 1 h w c

    def step(total, frame):
        index, frame_x, frame_gradient = frame
        result = _max_pool_gradient(frame_x, frame_gradient, pixels, pixel_stride)
        return jax.lax.dynamic_update_index_in_dim(total, result, index, 0), None

    # Every element is overwritten. Made from the gradient, the buffer is not allocated before the gradient exists, as
    # that of `jax.lax.map` is: a fifth more memory for a pooling between two convolutions.
    buffer = jnp.broadcast_to(gradient[0, 0, 0, 0, 0], frames[0].shape)
    pixel_gradient, _ = jax.lax.scan(step, buffer, (jnp.arange(len(buffer)), *frames))
    return _max_pool_gradient(x, pixel_gradient.reshape(pooled.shape), time, time_stride)


def _max_pool(x: Array, window: Window, stride: Window, larger: Callable) -> Array:
    for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=1):
        x = functools.reduce(larger, _taps(x, axis, size, step))
    return x


def _taps(x: Array, axis: int, size: int, step: int = 1) -> list[Array]:
    """Returns what each of the `size` places of a window sees that slides along an axis, with SAME padding by zeros."""
    (padding,) = jax.lax.padtype_to_pads((x.shape[axis],), (size,), (step,), "SAME")
    padded = jnp.pad(x, [padding if a == axis else (0, 0) for a in range(x.ndim)])
    span = padded.shape[axis] - size + 1
    return [jax.lax.slice_in_dim(padded, start, start + span, step, axis) for start in range(size)]
