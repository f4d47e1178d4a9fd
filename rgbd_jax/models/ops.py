"""Convolution and max pooling of clips (b t h w c), each by the formulation that is fastest on the platform."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

Window = tuple[int, int, int]  # t h w

# Frames whose patches are extracted together: on CPUs 4 took 0.7 to 1.2 times as long as 1, depending on the shape.
FRAMES_PER_CHUNK = 4


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
    """Returns the kernel's gradient as matrix products (im2col), a few frames at a time so that patches stay in cache.

    XLA's own formulation, a convolution whose kernel is as large as the frames, takes 3 to 8 times as long on CPUs.
    """
    frames = math.gcd(x.shape[0] * x.shape[1], FRAMES_PER_CHUNK)
    height, width = gradient.shape[2:4]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(total, chunk):
        x_chunk, gradient_chunk = chunk  # n h w i, (n h w) o
        padding = [(0, 0), (0, 0), *_paddings(x.shape[2:4], size, stride)]
        padded = jnp.pad(jnp.moveaxis(x_chunk, -1, 0), padding)  # i n h w
        rows = [slice(row, row + (height - 1) * stride + 1, stride) for row in range(size[0])]
        columns = [slice(column, column + (width - 1) * stride + 1, stride) for column in range(size[1])]
        taps = jnp.stack([padded[:, :, row, column] for row in rows for column in columns])  # (kh kw) i n h w
        patches = taps.reshape(len(rows) * len(columns) * x.shape[-1], -1)  # (kh kw i) (n h w)
        return total + jnp.matmul(patches, gradient_chunk, preferred_element_type=wide), None

    # Made from the gradient, so that inside `jax.shard_map` the zeros vary over the mesh as the gradient does.
    zeros = jnp.zeros_like(gradient, wide, shape=(size[0] * size[1] * x.shape[-1], gradient.shape[-1]))
    chunks = (
        x.reshape(-1, frames, *x.shape[2:]),  # chunks n h w i
        gradient.reshape(-1, frames * height * width, gradient.shape[-1]),  # chunks (n h w) o
    )
    total, _ = jax.lax.scan(add, zeros, chunks)
    return total.reshape(*size, x.shape[-1], gradient.shape[-1]).astype(x.dtype)


def _paddings(lengths: Sequence[int], sizes: Sequence[int], stride: int) -> list[tuple[int, int]]:
    return [same_padding(length, size, stride) for length, size in zip(lengths, sizes, strict=True)]


def _convolve_time(x: Array, kernel: Array) -> Array:
    length, size = x.shape[1], kernel.shape[0]
    padded = jnp.pad(x, [(0, 0), same_padding(length, size, 1), (0, 0), (0, 0), (0, 0)])
    taps = jnp.stack([padded[:, start : start + length] for start in range(size)])  # k b t h w i
    return jnp.einsum("kbthwi,kio->bthwo", taps, kernel)


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
    if window[1:] == (1, 1):
        return (_max_pool_gradient(x, gradient, window, stride),)  # no spatial pooling
    frame_by_frame = functools.partial(_max_pool_gradient_by_frame, window=window, stride=stride)
    whole = functools.partial(_max_pool_gradient, window=window, stride=stride)
    return (jax.lax.platform_dependent(x, gradient, cpu=frame_by_frame, default=whole),)


def _max_pool_gradient(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    # Of equal values the first receives the gradient.
    _, pull = jax.vjp(lambda x: _max_pool(x, window, stride, lambda a, b: jnp.where(b > a, b, a)), x)
    return pull(gradient)[0]


def _max_pool_gradient_by_frame(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    """Returns the gradient with respect to x; the spatial part frame by frame, so that it fits a CPU's cache."""
    over_time, stride_of_time = (window[0], 1, 1), (stride[0], 1, 1)
    over_pixels, stride_of_pixels = (1, *window[1:]), (1, *stride[1:])
    pooled_over_time = _max_pool(x, over_time, stride_of_time, jnp.maximum)  # b t2 h w c

    def step(total, frame):
        index, frame_x, frame_gradient = frame
        result = _max_pool_gradient(frame_x, frame_gradient, over_pixels, stride_of_pixels)
        return jax.lax.dynamic_update_index_in_dim(total, result, index, 0), None

    indices = jnp.arange(x.shape[0] * pooled_over_time.shape[1])
    frames = [a.reshape(-1, 1, 1, *a.shape[2:]) for a in (pooled_over_time, gradient)]  # (b t2) 1 1 h w c
    # Every element is overwritten. Made from the gradient, the buffer is not allocated before the gradient exists.
    start = jnp.broadcast_to(gradient[0, 0, 0, 0, 0], frames[0].shape)
    pixel_gradient, _ = jax.lax.scan(step, start, (indices, *frames))
    return _max_pool_gradient(x, pixel_gradient.reshape(pooled_over_time.shape), over_time, stride_of_time)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_pool(x: Array, window: Window, stride: Window, larger: Callable) -> Array:
    for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=1):
        if size > 1:
            x = _max_pool_axis(x, axis, size, step, larger)
    return x


def _max_pool_axis(x: Array, axis: int, size: int, step: int, larger: Callable) -> Array:
    length = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = same_padding(length, size, step)
    outputs = -(-length // step)
    padded = jnp.pad(x, padding)
    taps = [jax.lax.slice_in_dim(padded, start, start + (outputs - 1) * step + 1, step, axis) for start in range(size)]
    return functools.reduce(larger, taps)
