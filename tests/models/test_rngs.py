"""Random numbers of a clip depend on its own key alone."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.models.layers import Dropout
from rgbd_jax.models.rngs import ClipRngs
from rgbd_jax.models.temporal import choose_frames


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(6)), count=st.integers(1, 6))
def test_random_numbers_of_a_clip_do_not_depend_on_the_other_clips(seed, order, count):
    keys = jax.random.split(jax.random.key(seed), 6)
    some = np.asarray(order[:count])
    x = np.random.default_rng(0).normal(size=(6, 3, 40)).astype(np.float32)
    together, apart = ClipRngs(keys), ClipRngs(keys[some])
    for _ in range(2):
        np.testing.assert_array_equal(Dropout(0.3)(x, together)[some], Dropout(0.3)(x[some], apart))
        chosen = choose_frames(6, 16, 4, together)
        np.testing.assert_array_equal(chosen[some], choose_frames(count, 16, 4, apart))
    layers, of_some = together.next_keys_of(3), apart.next_keys_of(3)
    np.testing.assert_array_equal(jax.random.key_data(layers[:, some]), jax.random.key_data(of_some))


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
