"""Max pooling of clips with SAME padding by zeros, as the reference pads (zeros win over negative values).

The formulations agree in their values. Their gradients agree but for the choice among equal values, which a ReLU before
the pooling makes meaningless where they are zero.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, UInt8

from rgbd_jax.models.ops.windows import Window, taps

POOLED = "pooled"  # name of values that rematerialisation may store


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool_on_cpu(
    x: Float[Array, "b t h w c"], window: Window, stride: Window = (1, 1, 1)
) -> Float[Array, "b t2 h2 w2 c"]:
    """Pools the axes one after the other, as maxima of shifted slices.

    The gradient needs no select-and-scatter, which is slow on CPUs. The residual is x alone: the winning slices are
    recomputed, since storing them would take several times the memory of all convolution outputs.
    """
    return max_of_slices(x, window, stride)


def _cpu_forward(x, window, stride):
    return max_pool_on_cpu(x, window, stride), x


def _cpu_backward(window, stride, x, gradient):
    """Returns the gradient with respect to x; the spatial part frame by frame, so that it fits a CPU's cache."""
    if window[1:] == (1, 1):
        return (_gradient_of_slices(x, gradient, window, stride),)
    time, time_stride = (window[0], 1, 1), (stride[0], 1, 1)
    pixels, pixel_stride = (1, *window[1:]), (1, *stride[1:])
    pooled = max_of_slices(x, time, time_stride)  # b t2 h w c
    frames = [a.reshape(-1, 1, 1, *a.shape[2:]) for a in (pooled, gradient)]  # (b t2) 1 1 h w c

    def step(total, frame):
        index, frame_x, frame_gradient = frame
        result = _gradient_of_slices(frame_x, frame_gradient, pixels, pixel_stride)
        return jax.lax.dynamic_update_index_in_dim(total, result, index, 0), None

    # Every element is overwritten. Made from the gradient, the buffer is not allocated before the gradient exists, as
    # that of `jax.lax.map` is: a fifth more memory for a pooling between two convolutions.
    buffer = jnp.broadcast_to(gradient[0, 0, 0, 0, 0], frames[0].shape)
    pixel_gradient, _ = jax.lax.scan(step, buffer, (jnp.arange(len(buffer)), *frames))
    return (_gradient_of_slices(x, pixel_gradient.reshape(pooled.shape), time, time_stride),)


max_pool_on_cpu.defvjp(_cpu_forward, _cpu_backward)


def _gradient_of_slices(x: Array, gradient: Array, window: Window, stride: Window) -> Array:
    # Of equal values the first receives the gradient.
    _, pull = jax.vjp(lambda x: max_of_slices(x, window, stride, lambda a, b: jnp.where(b > a, b, a)), x)
    return pull(gradient)[0]


def max_of_slices(
    x: Float[Array, "b t h w c"], window: Window, stride: Window = (1, 1, 1), larger: Callable = jnp.maximum
) -> Float[Array, "b t2 h2 w2 c"]:
    """Pools the axes one after the other; for values that need no gradient."""
    for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=1):
        x = functools.reduce(larger, taps(x, axis, size, step))
    return x


def max_pool_on_gpu(
    x: Float[Array, "b t h w c"], window: Window, stride: Window = (1, 1, 1)
) -> Float[Array, "b t2 h2 w2 c"]:
    """Pools all axes at once and keeps the winner's place in its window, a byte, for the gradient."""
    return _max_with_winner(x, window, stride, x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_with_winner(x, window, stride, shape):
    return _gpu_forward(x, window, stride, shape)[0]


def _gpu_forward(x, window, stride, shape):
    del shape
    _, y, winner = winners_of_windows(x, window, stride, x)
    return y, checkpoint_name(winner, POOLED)


def _gpu_backward(window, stride, shape, winner, gradient):
    return (zero_but_winners(winner, gradient, shape, window, stride),)


_max_with_winner.defvjp(_gpu_forward, _gpu_backward)


def winners_of_windows(
    x: Float[Array, "b t h w c"], window: Window, stride: Window, key: Float[Array, "b t h w c"]
) -> tuple[Float[Array, "b t2 h2 w2 c"], Float[Array, "b t2 h2 w2 c"], UInt8[Array, "b t2 h2 w2 c"]]:
    """Returns the largest key in each window, x at the place of it, and the number of that place."""
    keys, values = _taps_of_window(key, window, stride), _taps_of_window(x, window, stride)
    largest, winning, winner = keys[0], values[0], jnp.zeros_like(keys[0], jnp.uint8)
    for number, (place, value) in enumerate(zip(keys[1:], values[1:], strict=True), start=1):
        later = place > largest
        largest, winning = jnp.where(later, place, largest), jnp.where(later, value, winning)
        winner = jnp.where(later, jnp.uint8(number), winner)
    return largest, winning, winner


def zero_but_winners(
    winner: UInt8[Array, "b t2 h2 w2 c"],
    gradient: Float[Array, "b t2 h2 w2 c"],
    shape: tuple[int, ...],
    window: Window,
    stride: Window,
) -> Float[Array, "b t h w c"]:
    """Returns the gradient of what was pooled, of the given shape: each window's at its winner."""
    x = jnp.zeros_like(gradient, shape=shape)  # differs between devices, in a shard_map, as the gradient does
    pull = jax.linear_transpose(lambda x: _taps_of_window(x, window, stride), x)
    zero = jnp.zeros((), gradient.dtype)
    return pull([jnp.where(winner == number, gradient, zero) for number in range(math.prod(window))])[0]


def _taps_of_window(x: Array, window: Window, stride: Window) -> list[Array]:
    """Returns what each place of the window sees, in the order of t h w; one padding and one slice each."""
    pads = jax.lax.padtype_to_pads(x.shape[1:4], window, stride, "SAME")
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    lengths = [size - extent + 1 for size, extent in zip(padded.shape[1:4], window, strict=True)]
    return [
        padded[:, *(slice(k, k + n, s) for k, n, s in zip(place, lengths, stride, strict=True))]
        for place in itertools.product(*map(range, window))
    ]
