"""The speed of this process's own devices, apart from the steps, in which all processes wait for the slowest."""

import time

import jax
import jax.numpy as jnp

# Milliseconds on each platform, which is much longer than the start of a program takes, and little memory.
SIDES = {"cpu": 256}
SIDE, PRODUCTS, REPEATS = 4096, 8, 5


@jax.jit
def _products(value: jax.Array) -> jax.Array:
    side = SIDES.get(jax.default_backend(), SIDE)
    matrix = value / side**2 * jnp.arange(side**2, dtype=value.dtype).reshape(side, side)  # products stay finite
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, product: product @ matrix, matrix)[0, 0]


def slowest_device_seconds() -> float:
    """Returns the seconds of a test computation on the slowest device of this process; 0 in a process alone."""
    if jax.process_count() == 1:
        return 0.0
    values = [jax.device_put(jnp.ones((), jnp.bfloat16), device) for device in jax.local_devices()]
    jax.block_until_ready([_products(value) for value in values])  # compiled at the first call
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready([_products(value) for value in values])
        seconds.append(time.perf_counter() - started)
    return min(seconds)  # what other programs of the machine add is not counted
