"""What this machine can do at best, measured: products of matrices, and reading and writing of memory."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def measured_peaks(dtype: str, repeats: int = 5) -> dict[str, float]:
    """Returns FLOP/s of a large product of matrices and bytes/s of a large array read and written, the best of some.

    Args:
        dtype: what the matrices are of.
        repeats: how often each is tried.
    """
    accelerator = jax.default_backend() != "cpu"
    side, length = (16384, 2**29) if accelerator else (2048, 2**25)
    matrix = jnp.ones((side, side), dtype)
    array = jnp.ones(length, jnp.float32)
    product, moved = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    return {
        "flops": 2 * side**3 / _shortest(lambda: product(matrix, matrix), repeats),
        "bytes": 2 * 4 * length / _shortest(lambda: moved(array), repeats),
    }


def _shortest(run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
