"""Heat maps against an independent computation with NumPy and OpenCV, from the normalised frames of the paper."""

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.models import heat_map

heat_maps = jax.jit(heat_map.heat_maps, static_argnums=1)


def expected_heat_map(frames, window):
    """Heat maps float64[t h w] of one clip uint8[t h w 3], one frame after the other."""
    normalised = (frames.astype(np.float64) - 127.5) / 128
    weights = [2 * k - window - 1 for k in range(1, window + 1)]
    result = np.zeros(frames.shape[:3])
    for end in range(window - 1, len(frames)):
        pooled = sum(w * x for w, x in zip(weights, normalised[end - window + 1 : end + 1], strict=True))
        pooled = np.maximum(pooled, 0)
        pooled -= pooled.min()
        if pooled.max() > 0:
            pooled /= pooled.max()
        grey = pooled @ [0.2989, 0.587, 0.114]
        static = np.where(grey > grey.mean() + 1e-9, grey, 0)  # float64 rounds the mean of equal values up or down
        static = cv2.erode(static, np.ones((2, 2), np.uint8))
        static = cv2.dilate(static, np.ones((3, 3), np.uint8))
        static -= static.min()
        if static.max() > 0:
            static /= static.max()
        result[end] = (grey + static) * static
    return result


def moving_clip(rng, t, h, w):
    """A noisy clip in which a bright rectangle wanders and much stays still, as in real video."""
    frames = np.repeat(rng.integers(0, 200, (1, h, w, 3)), t, axis=0)
    frames[:, : h // 2] += rng.integers(0, 3, (t, h // 2, w, 3))
    for i in range(t):
        y, x = (i * rng.integers(0, 3)) % h, (2 * i) % w
        frames[i, y : y + h // 3 + 1, x : x + w // 3 + 1] = rng.integers(150, 256, 3)
    return np.clip(frames, 0, 255).astype(np.uint8)


def brightening_clip(rng, t, h, w):
    """A clip that grows brighter everywhere, least in every third row and column: no window's sum has a zero."""
    slow = (np.arange(h) % 3 == 2)[:, None] | (np.arange(w) % 3 == 2)
    gain = np.where(slow, 3, rng.integers(12, 20, (h, w)))[..., None] + rng.integers(0, 3, (h, w, 3))
    return (np.arange(t)[:, None, None, None] * gain % 256).astype(np.uint8)


CLIPS = {
    "noise": lambda rng, t, h, w: rng.integers(0, 256, (t, h, w, 3), dtype=np.uint8),
    "moving": moving_clip,
    "brightening": brightening_clip,
}


# Few shapes and windows, so that few programs are compiled; the pixels vary.
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(5, 7, 9), (12, 16, 11), (3, 33, 20), (9, 1, 8)]),
    window=st.sampled_from([1, 2, 3, 10]),
    kind=st.sampled_from(sorted(CLIPS)),
)
def test_heat_maps_equal_the_definition(seed, shape, window, kind):
    rng = np.random.default_rng(seed)
    clips = [CLIPS[kind](rng, *shape) for _ in range(2)]
    got = np.asarray(heat_maps(np.stack(clips), window))
    assert got.shape == (2, *shape, 1)
    assert got.dtype == np.float32
    for clip, heat in zip(clips, got[..., 0], strict=True):
        np.testing.assert_allclose(heat, expected_heat_map(clip, window), atol=1e-5)


def test_opening_takes_the_borders_and_the_anchor_of_opencv():
    # A 2x2 bright spot: erosion keeps its lower right pixel (in the corner of the frame all four, as there is nothing
    # darker above and to the left), and dilation makes 3x3 of what is left.
    for y, x in [(0, 0), (3, 4), (6, 7)]:
        clip = np.zeros((2, 8, 9, 3), np.uint8)
        clip[1, y : y + 2, x : x + 2] = 255
        hot = np.zeros((8, 9), bool)
        hot[y : y + 3, x : x + 3] = True
        heat = np.asarray(heat_maps(clip[None], 2))[0, 1, ..., 0]
        np.testing.assert_array_equal(heat > 0, hot)
        np.testing.assert_allclose(heat, expected_heat_map(clip, 2)[1], atol=1e-6)


def test_heat_is_zero_without_motion_and_before_the_first_full_window():
    still = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 1, 6, 6, 3), dtype=np.uint8), 5, axis=1)
    np.testing.assert_array_equal(heat_maps(still, 4), np.zeros((1, 5, 6, 6, 1), np.float32))
    moving = moving_clip(np.random.default_rng(1), 8, 12, 12)[None]
    hot = np.asarray(heat_maps(moving, 5)).any(axis=(0, 2, 3, 4))
    np.testing.assert_array_equal(hot, [False] * 4 + [True] * 4)
    np.testing.assert_array_equal(heat_maps(moving[:, :3], 4), np.zeros((1, 3, 12, 12, 1)))


def test_frames_that_are_normalised_already_are_refused():
    with pytest.raises(ValueError, match=r"frames of uint8, before normalisation; found float32"):
        heat_maps(np.zeros((1, 4, 5, 5, 3), np.float32), 2)
