"""Frame choice: the interval rule of the reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax import sampling

lengths = st.integers(1, 5000)
counts = st.integers(1, 200)


@given(n=lengths, count=counts)
def test_intervals_follow_the_rule_of_the_reference(n, count):
    start, stop = sampling.intervals(n, count)
    for i in range(count):  # as the reference writes it, in floating point
        assert start[i] == int(n * i / count)
        assert stop[i] == max(int(n * i / count) + 1, int(n * (i + 1) / count))


@given(n=lengths, count=counts)
def test_intervals_cover_a_long_clip_once_and_a_short_one_without_gaps(n, count):
    start, stop = sampling.intervals(n, count)
    taken = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
    if n >= count:
        np.testing.assert_array_equal(taken, np.arange(n))
    else:
        np.testing.assert_array_equal(np.unique(taken), np.arange(n))
        np.testing.assert_array_equal(stop - start, 1)


@given(n=lengths, count=counts)
def test_evaluation_takes_the_middle_member(n, count):
    start, stop = sampling.intervals(n, count)
    middle = [int(np.mean(range(a, b))) for a, b in zip(start, stop, strict=True)]
    np.testing.assert_array_equal(sampling.sample_frames(n, count, None), middle)


@given(n=lengths, count=counts, seed=st.integers(0, 2**32))
def test_training_takes_a_member_of_each_interval(n, count, seed):
    start, stop = sampling.intervals(n, count)
    frames = sampling.sample_frames(n, count, np.random.default_rng(seed))
    assert (start <= frames).all()
    assert (frames < stop).all()


def test_training_takes_every_member_equally_often():
    rng = np.random.default_rng(0)
    draws = np.stack([sampling.sample_frames(30, 10, rng) for _ in range(3000)])
    hits = np.stack([(draws == 3 * np.arange(10) + member).mean(axis=0) for member in range(3)])
    np.testing.assert_allclose(hits, 1 / 3, atol=0.05)  # 6 standard deviations


@pytest.mark.parametrize(("n", "count", "message"), [(0, 4, "0 frames"), (4, 0, "config.clip.frames")])
def test_nothing_to_sample_is_an_error(n, count, message):
    with pytest.raises(ValueError, match=message):
        sampling.sample_frames(n, count, None)
