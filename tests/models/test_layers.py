"""Layers against XLA's own operations and against what autodiff makes of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.config import default_config
from rgbd_jax.models.attention import mask_below_top_k
from rgbd_jax.models.heat_map import pool_heat_map
from rgbd_jax.models.layers import BatchNorm, ClipRngs, Dropout, normalise_batch, scaled
from rgbd_jax.models.ops import convolve, max_pool
from rgbd_jax.models.recoupling import QUERY_FEATURES, Recoupling
from rgbd_jax.models.temporal import choose_frames

AXES = ("NDHWC", "DHWIO", "NDHWC")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


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

    def expected(x):
        padded = jnp.pad(x, [(0, 0), *jax.lax.padtype_to_pads(size, shape, stride, "SAME"), (0, 0)])
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
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias, mean, variance

    def normalise(x, scale, bias):
        return normalise_batch(x, scale, bias, jnp.zeros(5), 1e-3, ())

    for found, expected in zip(normalise(x, scale, bias), plain(x, scale, bias), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    weights = random(4, 3, 5, seed=3)
    gradients = [jax.grad(lambda *a, f=f: (weights * f(*a)[0]).sum(), (0, 1, 2)) for f in (normalise, plain)]
    for found, expected in zip(*(gradient(x, scale, bias) for gradient in gradients), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_running_statistics_are_used_in_evaluation_and_updated_in_training_as_pytorch_does():
    norm, x = BatchNorm(5, default_config(), epsilon=1e-3, momentum=0.1), random(4, 3, 5) * 3 + 1
    np.testing.assert_allclose(norm(x), x / np.sqrt(1.001), rtol=1e-5)
    norm.train()
    np.testing.assert_allclose(norm(x).mean((0, 1)), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * np.var(x, (0, 1), ddof=1), rtol=1e-5)


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
    names = ("query", "key", "frame_hidden", "frame_output", "merge")
    for number, name in enumerate(names if heads > 1 else names[:-1]):
        kernel = getattr(module, name).kernel
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


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(112, 1, 112), (112, 0.25, 28), (16, 0.125, 4), (24, 0.01, 4)]
)
def test_width_multiplier(channels, width, expected):
    assert scaled(channels, width) == expected


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(6)), count=st.integers(1, 6))
def test_random_numbers_of_a_clip_do_not_depend_on_the_other_clips(seed, order, count):
    keys = jax.random.split(jax.random.key(seed), 6)
    some = np.asarray(order[:count])
    x = random(6, 3, 40)
    together, apart = ClipRngs(keys), ClipRngs(keys[some])
    for _ in range(2):
        np.testing.assert_array_equal(Dropout(0.3)(x, together)[some], Dropout(0.3)(x[some], apart))
        chosen = choose_frames(6, 16, 4, together)
        np.testing.assert_array_equal(chosen[some], choose_frames(count, 16, 4, apart))


def test_dropout_drops_its_rate_differently_each_time_and_keeps_the_mean():
    x = np.ones((4, 50, 100), np.float32)
    rngs = ClipRngs(jax.random.split(jax.random.key(0), 4))
    first, second = (np.asarray(Dropout(0.25)(x, rngs)) for _ in range(2))
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    for dropped in (first, second):
        np.testing.assert_allclose((dropped == 0).mean((1, 2)), 0.25, atol=0.03)
    assert ((first == 0) != (second == 0)).mean() > 0.3
    assert len({clip.tobytes() for clip in first}) == 4
    np.testing.assert_array_equal(Dropout(0.25)(x, None), x)
