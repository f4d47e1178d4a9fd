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


@given(n=lengths, count=counts, seed=st.integers(0, 2**32))
def test_training_takes_a_member_of_each_interval_and_evaluation_the_middle_one(n, count, seed):
    start, stop = sampling.intervals(n, count)
    frames = sampling.sample_frames(n, count, np.random.default_rng(seed))
    assert (start <= frames).all()
    assert (frames < stop).all()
    middle = [int(np.mean(range(a, b))) for a, b in zip(start, stop, strict=True)]
    np.testing.assert_array_equal(sampling.sample_frames(n, count, None), middle)


@given(n=lengths, count=counts, views=st.integers(1, 10))
def test_views_lie_in_their_intervals_in_time_order_and_share_no_frame_of_a_long_clip(n, count, views):
    frames = sampling.view_frames(n, count, views)
    start, stop = sampling.intervals(n, count)
    assert frames.shape == (views, count)
    assert (start <= frames).all()
    assert (frames < stop).all()
    assert (np.diff(frames, axis=0) >= 0).all()
    if n >= views * count:
        assert len(np.unique(frames)) == views * count
    np.testing.assert_array_equal(sampling.view_frames(n, count, 1), [sampling.sample_frames(n, count, None)])


def test_the_frames_of_views_are_those_of_the_definition():
    # Intervals of 6 frames: with 2 views the middles of 0-2 and 3-5, with 3 the earlier middles of 0-1, 2-3, 4-5.
    np.testing.assert_array_equal(sampling.view_frames(12, 2, 2), [[1, 7], [4, 10]])
    np.testing.assert_array_equal(sampling.view_frames(12, 2, 3), [[0, 6], [2, 8], [4, 10]])
    with pytest.raises(ValueError, match="0 frames"):
        sampling.sample_frames(0, 4, None)
