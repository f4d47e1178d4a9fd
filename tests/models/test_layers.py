"""Layers against XLA's own operations and against what autodiff makes of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rgbd_jax.config import default_config
from rgbd_jax.models.attention import mask_below_top_k
from rgbd_jax.models.frp import pool_heat_map
from rgbd_jax.models.layers import normalise_batch, scaled
from rgbd_jax.models.ops import convolve, max_pool, same_padding
from rgbd_jax.models.recoupling import QUERY_FEATURES, Recoupling

AXES = ("NDHWC", "DHWIO", "NDHWC")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@given(length=st.integers(1, 50), size=st.integers(1, 7), step=st.integers(1, 3))
def test_same_padding_is_tensorflows(length, size, step):
    (expected,) = jax.lax.padtype_to_pads((length,), (size,), (step,), "SAME")
    assert same_padding(length, size, step) == expected


@settings(max_examples=15, deadline=None)
@given(
    kernel=st.sampled_from([((1, 1, 1), 1), ((1, 3, 3), 1), ((1, 7, 7), 2), ((1, 3, 3), 2), ((3, 1, 1), 1)]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
)
def test_convolve_equals_three_dimensional_convolution(kernel, size):
    shape, stride = kernel
    x, weights = random(2, *size, 3), random(*shape, 3, 4, seed=1)

    def by_xla(x, weights):
        return jax.lax.conv_general_dilated(x, weights, (1, stride, stride), "SAME", dimension_numbers=AXES)

    result, pull = jax.vjp(lambda x, weights: convolve(x, weights, stride), x, weights)
    expected, expected_pull = jax.vjp(by_xla, x, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    gradient = random(*expected.shape, seed=2)
    for ours, theirs in zip(pull(gradient), expected_pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_convolve_sums_the_gradient_of_bfloat16_in_float32():
    x, weights = random(4, 8, 6, 6, 3), random(1, 3, 3, 3, 4, seed=1)
    gradient = random(4, 8, 6, 6, 4, seed=2)

    def kernel_gradient(dtype):
        _, pull = jax.vjp(lambda weights: convolve(x.astype(dtype), weights), weights.astype(dtype))
        return np.asarray(pull(gradient.astype(dtype))[0], np.float32)

    expected = kernel_gradient(jnp.float32)
    # Sums of 1152 products: added up in bfloat16 they would be off by several per cent of the largest.
    np.testing.assert_allclose(kernel_gradient(jnp.bfloat16), expected, atol=0.006 * np.abs(expected).max(), rtol=0)


def test_convolve_refuses_other_kernels():
    with pytest.raises(ValueError, match="neither pointwise, spatial nor temporal"):
        convolve(random(1, 3, 4, 4, 2), random(3, 3, 3, 2, 2))


@settings(max_examples=10, deadline=None)
@given(
    window=st.sampled_from(
        [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 2, 2), (1, 2, 2)), ((3, 1, 1), (1, 1, 1))]
    ),
    size=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
)
def test_max_pool_pads_zeros_and_equals_reduce_window(window, size):
    shape, stride = window
    x = random(2, *size, 3) - 1  # mostly negative: zeros of the padding win at the border
    padding = [(0, 0), *(same_padding(n, k, s) for n, k, s in zip(size, shape, stride, strict=True)), (0, 0)]

    def expected(x):
        padded = jnp.pad(x, padding)
        return jax.lax.reduce_window(padded, -jnp.inf, jax.lax.max, (1, *shape, 1), (1, *stride, 1), "VALID")

    np.testing.assert_array_equal(max_pool(x, shape, stride), expected(x))
    weights = random(*expected(x).shape, seed=1)
    gradients = [
        jax.grad(lambda x, pool=pool: (weights * pool(x)).sum())(x)
        for pool in (lambda x: max_pool(x, shape, stride), expected)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_batch_normalisation_and_its_gradient():
    x, scale, bias = random(4, 3, 5) * 3 + 1, random(5, seed=1), random(5, seed=2)

    def plain(x, scale, bias):
        mean = x.mean((0, 1))
        variance = ((x - mean) ** 2).mean((0, 1))
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias

    def normalise(x, scale, bias):
        return normalise_batch(x, scale, bias, jnp.zeros(5), 1e-3, ())[0]

    y, mean, variance = normalise_batch(x, scale, bias, jnp.zeros(5), 1e-3, ())
    np.testing.assert_allclose(y, plain(x, scale, bias), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, np.asarray(x).mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(variance, np.asarray(x).var((0, 1)), rtol=1e-5)
    weights = random(4, 3, 5, seed=3)
    found, expected = (
        jax.grad(lambda *a, f=f: (weights * f(*a)).sum(), (0, 1, 2))(x, scale, bias) for f in (normalise, plain)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    check_grads(normalise, (x, scale, bias), order=1, modes=["rev"], rtol=0.02)


def test_batch_statistics_do_not_cancel_in_float32():
    x = random(1000, 2) + 3000
    _, _, variance = normalise_batch(x, jnp.ones(2), jnp.zeros(2), jnp.zeros(2), 1e-3, ())
    np.testing.assert_allclose(variance, np.asarray(x, np.float64).var(0), rtol=1e-3)


@given(n=st.integers(2, 40), fraction=st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_each_query_keeps_its_strongest_keys(n, fraction):
    scores = np.random.default_rng(n).permutation(n * 3).reshape(3, n).astype(np.float32)
    kept = int(n * fraction)
    if not kept:
        return
    found = np.asarray(mask_below_top_k(jnp.asarray(scores), fraction))
    for row, original in zip(found, scores, strict=True):
        strongest = np.sort(original)[-kept:]
        np.testing.assert_array_equal(np.sort(row[np.isfinite(row)]), strongest)


@pytest.mark.parametrize("heads", [1, 3])
def test_recoupling_equals_the_scores_of_all_pairs_of_channels_without_forming_them(heads):
    frames, channels = 6, 40
    config = default_config()
    config.clip.frames = frames
    config.model.recoupling_heads, config.model.recoupling_hidden = heads, 8
    module = Recoupling(channels, config)
    for number, linear in enumerate(
        ("query", "key", "frame_hidden", "frame_output", *(["merge"] if heads > 1 else []))
    ):
        kernel = getattr(module, linear).kernel
        kernel[...] = random(*kernel[...].shape, seed=number) / 3
    x = random(2, frames, channels, seed=9)
    _, _, weights = module(x)

    by_channel = np.asarray(x, np.float64).transpose(0, 2, 1)  # b c t
    query, key = (by_channel @ np.asarray(getattr(module, name).kernel[...], np.float64) for name in ("query", "key"))
    query, key = (z.reshape(2, channels, heads, QUERY_FEATURES) for z in (query, key))
    pairs = np.einsum("bihd,bjhd->bhij", query, key) / 8  # b heads c c: what must not be formed
    scores = pairs.mean(2).reshape(2, -1)
    if heads > 1:
        scores = scores @ np.asarray(module.merge.kernel[...])
        scores = (scores - scores.mean(-1, keepdims=True)) / np.sqrt(scores.var(-1, keepdims=True) + 1e-5)
    expected = 1 / (1 + np.exp(-scores))
    ratio = np.asarray(weights) / np.asarray(weights)[:, :, :1]
    np.testing.assert_allclose(ratio, np.broadcast_to((expected / expected[:, :1])[:, None], ratio.shape), rtol=1e-4)

    jaxpr = jax.make_jaxpr(lambda x: module(x))(x)
    largest = max(np.prod(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars)
    assert largest < channels * channels


@given(size=st.integers(1, 300), halvings=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_heat_map_meets_every_size_that_strided_layers_make(size, halvings):
    target = size
    for _ in range(halvings):
        target = -(-target // 2)
    pooled = pool_heat_map(jnp.ones((1, 1, size, size, 1)), target, target)
    assert pooled.shape == (1, 1, target, target, 1)


def test_width_multiplier():
    assert scaled(112, 1.0) == 112
    assert scaled(112, 0.25) == 28
    assert scaled(16, 0.125) == 4
    assert scaled(24, 0.01) == 4
