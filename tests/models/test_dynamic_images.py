"""Dynamic images by the formula of UMDR's reference, and that a network sees them instead of the frames."""

import jax
import numpy as np
import pytest

from rgbd_jax.model import Model
from rgbd_jax.models.dynamic_images import dynamic_images
from rgbd_jax.models.mixing import Mixture
from tests.tiny import tiny_config

T, WINDOW = 7, 4


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, T, 5, 6, 3), np.uint8)


def expected_images(frames):
    """Of one clip; scale and offset of the normalised frames cancel, so that whole numbers give the exact value."""
    images = []
    for i in [*range(T - 1), T - 2]:
        count = min(WINDOW, T - i)
        image = sum((2 * k - count - 1) * frames[i + k - 1].astype(int) for k in range(1, count + 1))
        images.append(np.uint8(255 * (image - image.min()) // (image.max() - image.min())))
    return np.stack(images)


def test_images_are_those_of_the_formula(frames):
    found = np.asarray(dynamic_images(frames, WINDOW))
    np.testing.assert_array_equal(found, [expected_images(clip) for clip in frames])
    assert not np.any(dynamic_images(np.full_like(frames, 7), WINDOW))


def test_a_network_sees_the_images_mixed_after_they_are_made(frames):
    config = tiny_config("unused", "umdr_rgb")
    config.model.dynamic_images = WINDOW
    model = Model(config, 3)
    mixture = Mixture(np.full(T, 0.25, np.float32), np.float32(0.25))
    batch = {"frames": {"rgb": frames}, "partner": {"frames": {"rgb": frames[::-1]}}}
    with jax.disable_jit():
        alone, mixed = (model.inputs(batch, each)["rgb"].clip for each in (None, mixture))
    images = np.asarray(dynamic_images(frames, WINDOW)).astype(np.float64)
    np.testing.assert_array_equal(alone, ((images - 127.5) / 128).astype(np.float32))
    np.testing.assert_allclose(mixed, (0.25 * images + 0.75 * images[::-1] - 127.5) / 128, atol=1e-6)
