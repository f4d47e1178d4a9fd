"""Layers against the plain formula and by their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.config import default_config
from rgbd_jax.models.attention import mask_below_top_k
from rgbd_jax.models.heat_map import pool_heat_map
from rgbd_jax.models.layers import BatchNormReLU, ClipRngs, Dropout
from rgbd_jax.models.recoupling import QUERY_FEATURES, Recoupling
from rgbd_jax.models.temporal import choose_frames


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_running_statistics_are_used_in_evaluation_and_updated_in_training_as_pytorch_does():
    norm, x = BatchNormReLU(5, default_config(), epsilon=1e-3, momentum=0.1), random(4, 3, 5) * 3 + 1
    np.testing.assert_allclose(norm(x), np.maximum(x / np.sqrt(1.001), 0), rtol=1e-5)
    norm.train()
    deviation = x - x.mean((0, 1))
    normal = deviation / np.sqrt(np.square(deviation).mean((0, 1)) + 1e-3)
    np.testing.assert_allclose(norm(x), np.maximum(normal, 0), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * np.var(x, (0, 1), ddof=1), rtol=1e-5)


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
