"""Formulations for TPUs: what the compiler fuses into few passes over the frames of all clips, n h w c.

An estimate of the TPU compiler hardly depends on the arithmetic of a fusion, but on how many values it reads and
writes. Select-and-scatter, the gradient that autodiff gives to a reduction over windows, is not fused at all.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rgbd_jax.models.ops import convolution, normalisation
from rgbd_jax.models.ops.convolution import PRODUCT
from rgbd_jax.models.ops.normalisation import Norm, Normalised, NormalisedAndPooled, mean_over_devices, over_devices
from rgbd_jax.models.ops.windows import Window

_PADDING = 16  # the code of a window in which a zero of the padding wins
_Pair = tuple[int, int]


def convolve(
    x: Float[Array, "b t h w i"], kernel: Float[Array, "kt kh kw i o"], spatial_stride: int = 1
) -> Float[Array, "b t h2 w2 o"]:
    """`convolution.convolve`, pointwise kernels too over frames: clip and time as one axis have one layout."""
    if kernel.shape[:3] == (1, 1, 1) and spatial_stride == 1:
        return _clips(_frames(x) @ kernel[0, 0, 0], x)
    return convolution.convolve(x, kernel, spatial_stride)


def convolve_batch_norm_relu(
    x: Float[Array, "b t h w i"], norm: Norm, kernel: Float[Array, "kt kh kw i o"], spatial_stride: int
) -> Normalised:
    """`convolve` and `batch_norm_relu`, whose sums the convolution's fusion takes along."""
    y = checkpoint_name(convolve(x, kernel, spatial_stride), PRODUCT)
    sample = y[:, :1] if kernel.shape[0] > 1 else _one_row(_frames(x), kernel[0], spatial_stride)
    return batch_norm_relu(y, norm, sample)


def batch_norm_relu(
    x: Float[Array, "*batch c"], norm: Norm, sample: Float[Array, "*some c"] | None = None
) -> Normalised:
    """`normalisation.batch_norm_relu` over frames; `sample` has some of the values (see `_statistics`)."""
    frames = _frames(x) if x.ndim == 5 else x
    statistics = functools.partial(_statistics, jax.lax.stop_gradient(x[:1] if sample is None else sample))
    result = normalisation.batch_norm_relu(frames, norm, statistics)
    return result._replace(values=result.values.reshape(x.shape))


def _statistics(sample: Float[Array, "*some c"], x: Float[Array, "*batch c"], dtype: DTypeLike) -> tuple[Array, Array]:
    """Returns mean and biased variance in one pass, of the distances from the mean of a sample of the values.

    The sample is not taken from x where that would keep the convolution's fusion from summing them. Of n parts of x the
    square of the distance between its own mean and that of one part is at most n - 1 times the variance: with one row
    of a hundred as the sample, the sums lose two digits at worst.
    """
    near = sample.astype(dtype).mean(tuple(range(sample.ndim - 1)))  # c
    distance, reduced = x.astype(dtype) - near, tuple(range(x.ndim - 1))  # *batch c
    offset, square = distance.mean(reduced), jnp.square(distance).mean(reduced)  # c, c
    return near + offset, jnp.maximum(square - jnp.square(offset), 0)


def max_pool(x: Float[Array, "b t h w c"], window: Window, stride: Window = (1, 1, 1)) -> Float[Array, "b t2 h2 w2 c"]:
    """Pools space, then time, by reductions whose results name the winner for the gradient."""
    frames, clip = _frames(x), x.shape[1]
    if window[1:] != (1, 1):
        frames = _pool_frames(frames, window[1:], stride[1:])
    return _clips(_pool_time(frames, window[0], clip) if window[0] > 1 else frames, x)


def convolve_batch_norm_relu_max_pool(
    x: Float[Array, "b t h w i"],
    norm: Norm,
    kernel: Float[Array, "1 kh kw i o"],
    spatial_stride: int,
    window: Window,
    stride: Window,
) -> NormalisedAndPooled:
    """The operations one after the other, with a gradient that never puts the pixels of the pooling together.

    Every second row and column from each place of the pooling's stride on keeps an array of its own, and these enter
    the convolution's gradient as convolutions of twice the stride. The values cost nothing if they are not used.
    """
    pooled, mean, variance = _unit(_frames(x), kernel[0], norm, spatial_stride, window[1:], stride[1:])
    values = batch_norm_relu(convolve(x, kernel, spatial_stride), norm).values
    return NormalisedAndPooled(values, mean, variance, _clips(pooled, x))


def _frames(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _clips(frames: Array, x: Array) -> Array:
    return frames.reshape(x.shape[0], -1, *frames.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _unit(x, kernel, norm, conv_stride, window, stride):
    return _unit_forward(x, kernel, norm, conv_stride, window, stride)[0]


def _unit_forward(x, kernel, norm, conv_stride, window, stride):
    y = checkpoint_name(_convolve(x, kernel, conv_stride, (0, 0), (1, 1)), PRODUCT)  # n h w c
    mean, variance = over_devices(*_statistics(_one_row(x, kernel, conv_stride), y, norm.shift.dtype), norm)
    inverse = jax.lax.rsqrt(variance + norm.epsilon)  # c
    factor = inverse * norm.scale  # c
    normal = ((y.astype(mean.dtype) - mean) * factor + norm.bias).astype(y.dtype)
    pooled, code = _winners(jax.nn.relu(normal), window, stride)  # n h2 w2 c
    return (pooled, mean, variance), (x, kernel, y, mean, inverse, norm, pooled, code)


def _unit_backward(conv_stride, window, stride, residuals, cotangents):
    x, kernel, y, mean, inverse, norm, pooled, code = residuals
    gradient = jnp.where(pooled > 0, cotangents[0], jnp.zeros((), pooled.dtype))  # n h2 w2 c; through the ReLU
    places = _places(stride)
    parts = [_gradient_at(place, gradient, code, y.shape, window, stride) for place in places]  # n h/2 w/2 c each
    normal = [(y[:, r :: stride[0], q :: stride[1]].astype(mean.dtype) - mean) * inverse for r, q in places]
    exact = [part.astype(mean.dtype) for part in parts]
    bias_sum = sum(part.sum((0, 1, 2)) for part in exact)  # c
    scale_sum = sum((part * value).sum((0, 1, 2)) for part, value in zip(exact, normal, strict=True))  # c
    bias_mean, scale_mean = mean_over_devices(jnp.stack([bias_sum, scale_sum]), y, norm.axes)  # c, c
    x_gradients, kernel_gradients = [], []
    for place, part, value in zip(places, exact, normal, strict=True):
        if part.size:
            y_gradient = (norm.scale * inverse * (part - bias_mean - value * scale_mean)).astype(y.dtype)
            arguments = conv_stride, place, stride
            to_x = jax.linear_transpose(lambda x, a=arguments: _convolve(x, kernel, *a), x)
            to_kernel = jax.linear_transpose(lambda kernel, a=arguments: _convolve(x, kernel, *a), kernel)
            x_gradients += to_x(y_gradient)
            kernel_gradients += to_kernel(y_gradient)
    norm_gradient = norm.replace(scale=scale_sum, bias=bias_sum, shift=jnp.zeros_like(norm.shift))
    return sum(x_gradients), sum(kernel_gradients), norm_gradient


_unit.defvjp(_unit_forward, _unit_backward)


def _places(stride: _Pair) -> list[_Pair]:
    return [(row, column) for row in range(stride[0]) for column in range(stride[1])]


def _convolve(x: Array, kernel: Array, stride: int, place: _Pair, every: _Pair) -> Array:
    """Returns every so many rows and columns, from `place` on, of a convolution with SAME padding."""
    pads = []
    for size, extent, first, step in zip(x.shape[1:3], kernel.shape[:2], place, every, strict=True):
        ((before, _),) = jax.lax.padtype_to_pads((size,), (extent,), (stride,), "SAME")
        count = len(range(first, -(-size // stride), step))
        before -= first * stride
        pads.append((before, (count - 1) * stride * step + extent - size - before))
    strides = tuple(stride * step for step in every)
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _one_row(x: Float[Array, "n h w i"], kernel: Float[Array, "kh kw i o"], stride: int) -> Float[Array, "n 1 w2 o"]:
    """Returns the row in the middle of a convolution, of all frames."""
    rows = -(-x.shape[1] // stride)
    return _convolve(x, kernel, stride, (rows // 2, 0), (rows, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool_frames(x, window, stride):
    y = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")
    outside = jnp.asarray(_crosses_border(x.shape[1:3], window, stride))  # h2 w2 1
    return jnp.where(outside, jnp.maximum(y, 0), y)


def _pool_forward(x, window, stride):
    y, code = _winners(x, window, stride)
    return y, (code, x.shape)


def _pool_backward(window, stride, residuals, gradient):
    """Stacks the places of the stride: dilated pads of each, and their sum, cost more."""
    code, shape = residuals
    rows, columns = (-(-size // step) for size, step in zip(shape[1:3], stride, strict=True))
    parts = []
    for place in _places(stride):
        part = _gradient_at(place, gradient, code, shape, window, stride)  # n h/2 w/2 c, or less
        parts.append(jnp.pad(part, [(0, 0), (0, rows - part.shape[1]), (0, columns - part.shape[2]), (0, 0)]))
    lines = [jnp.stack(parts[first : first + stride[1]], 3) for first in range(0, len(parts), stride[1])]
    together = jnp.stack(lines, 2).reshape(shape[0], rows * stride[0], columns * stride[1], shape[3])
    return (together[:, : shape[1], : shape[2]],)


_pool_frames.defvjp(_pool_forward, _pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool_time(x, size, clip):
    return _pool_time_forward(x, size, clip)[0]


def _pool_time_forward(x, size, clip):
    """Of equal values the first receives the gradient; places are counted from 1."""
    y, winner = None, jnp.ones(x.shape, jnp.uint8)
    for number, seen in enumerate(_frames_around(x, size, clip), start=1):
        if y is not None:
            winner = jnp.where(seen > y, jnp.uint8(number), winner)
        y = seen if y is None else jnp.maximum(y, seen)
    return y, winner


def _pool_time_backward(size, clip, winner, gradient):
    """Every frame looks at the windows around it, of which the first sees it last."""
    zero = jnp.zeros((), gradient.dtype)
    around = zip(_frames_around(winner, size, clip), _frames_around(gradient, size, clip), strict=True)
    return (sum(jnp.where(wins == size - number, part, zero) for number, (wins, part) in enumerate(around)),)


_pool_time.defvjp(_pool_time_forward, _pool_time_backward)


def _frames_around(x: Float[Array, "n h w c"], size: int, clip: int) -> list[Float[Array, "n h w c"]]:
    """Returns what each place of a window over time sees of the clip that a frame is in; zeros beyond its ends."""
    zero, time = jnp.zeros((), x.dtype), np.arange(len(x)) % clip
    result = []
    for offset in range(-((size - 1) // 2), size // 2 + 1):
        seen = jax.lax.pad(x, zero, [(-offset, offset, 0), *[(0, 0, 0)] * 3])
        inside = (time + offset >= 0) & (time + offset < clip)
        result.append(jnp.where(jnp.asarray(inside)[:, None, None, None], seen, zero))
    return result


def _winners(
    x: Float[Array, "n h w c"], window: _Pair, stride: _Pair
) -> tuple[Float[Array, "n h2 w2 c"], Int[Array, "n h2 w2 c"]]:
    """Returns the maximum of each window, with padding by zeros, and the code of the pixel that it comes from.

    The code is made of row and column modulo 4: no window is larger. A value of 16 bits and its code are one integer,
    of which XLA's reduction takes the maximum.
    """
    code = jnp.asarray(_codes(*map(np.arange, x.shape[1:3])), jnp.int32)  # h w 1
    outside = jnp.asarray(_crosses_border(x.shape[1:3], window, stride))  # h2 w2 1
    extent, step = (1, *window, 1), (1, *stride, 1)
    if x.dtype == jnp.bfloat16:
        lowest = jnp.int32(jnp.iinfo(jnp.int32).min)
        best = jax.lax.reduce_window(_keys(x) + code, lowest, jax.lax.max, extent, step, "SAME")
        best = jnp.maximum(best, jnp.where(outside, _PADDING, lowest))
        return _values_of_keys(best), (best & 31).astype(jnp.uint8)
    codes = jnp.broadcast_to(code, x.shape)
    initial = (jnp.asarray(-jnp.inf, x.dtype), jnp.int32(_PADDING))

    def larger(a, b):
        first = a[0] >= b[0]
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    y, winner = jax.lax.reduce_window((x, codes), initial, larger, extent, step, "SAME")
    padding = outside & (y < 0)
    return jnp.where(padding, 0, y), jnp.where(padding, _PADDING, winner).astype(jnp.uint8)


def _gradient_at(
    place: _Pair, gradient: Array, code: Array, shape: Sequence[int], window: _Pair, stride: _Pair
) -> Array:
    """Returns the gradient of the pixels at a place of the stride, from that of the windows that see them.

    Gradient and code are shifted before they are compared: XLA would store what it shifts after that.
    """
    counts = [len(range(first, size, step)) for first, size, step in zip(place, shape[1:3], stride, strict=True)]
    own = [np.arange(count) * step + first for first, count, step in zip(place, counts, stride, strict=True)]
    own_code = jnp.asarray(_codes(*own), jnp.uint8)  # h/2 w/2 1
    zero, total = jnp.zeros((), gradient.dtype), jnp.zeros((shape[0], *counts, shape[-1]), gradient.dtype)
    for shifts in itertools.product(*_seen_by(place, shape, window, stride)):
        pads = [
            (shift, count - length - shift, 0)
            for shift, count, length in zip(shifts, counts, gradient.shape[1:3], strict=True)
        ]
        pads = [(0, 0, 0), *pads, (0, 0, 0)]
        wins = jax.lax.pad(code, jnp.uint8(_PADDING), pads) == own_code
        total += jnp.where(wins, jax.lax.pad(gradient, zero, pads), zero)
    return total


def _seen_by(place: _Pair, shape: Sequence[int], window: _Pair, stride: _Pair) -> Iterator[list[int]]:
    """Yields for rows and columns which windows see the pixels at a place, as how many strides they begin before."""
    for first, size, extent, step in zip(place, shape[1:3], window, stride, strict=True):
        ((before, _),) = jax.lax.padtype_to_pads((size,), (extent,), (step,), "SAME")
        yield [(offset - first) // step for offset in range(-before, extent - before) if (offset - first) % step == 0]


def _codes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return ((rows[:, None] & 3) * 4 + (columns & 3))[..., None]  # h w 1


def _crosses_border(sizes: Sequence[int], window: _Pair, stride: _Pair) -> np.ndarray:
    crosses = []
    for size, extent, step in zip(sizes, window, stride, strict=True):
        ((before, _),) = jax.lax.padtype_to_pads((size,), (extent,), (step,), "SAME")
        starts = np.arange(-(-size // step)) * step - before
        crosses.append((starts < 0) | (starts + extent > size))
    return (crosses[0][:, None] | crosses[1])[..., None]  # h2 w2 1


def _keys(x: Float[Array, "*any"]) -> Int[Array, "*any"]:
    """Returns integers in the order of values of 16 bits, which leave the lower 16 bits free."""
    return _flipped_if_negative(jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32))


def _values_of_keys(keys: Int[Array, "*any"]) -> Float[Array, "*any"]:
    bits = _flipped_if_negative(keys & ~0xFFFF)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def _flipped_if_negative(bits: Array) -> Array:
    """Without a comparison, whose outcome XLA would store."""
    return bits ^ ((bits >> 31) & 0x7FFF0000)
