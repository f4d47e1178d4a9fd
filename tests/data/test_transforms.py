"""Transforms: geometry against Pillow's chain of single steps, draws against their ranges."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from rgbd_jax.config import default_config
from rgbd_jax.data import transforms
from rgbd_jax.data.transforms import ClipTransform

GREY_LEVEL = 1.0  # of 256; 1/128 of the normalised frame


def config(size=224, **fields):
    result = default_config()
    result.clip.size = size
    result.data.transforms.update(fields)
    return result


def transformed(transform, frame):
    out = np.full((transform.size, transform.size, 3), 77, np.uint8)
    transform(frame, out)
    return out


def reference_chain(transform, frame):
    """Rotation, resize, crop, blur, flip and resize one after the other, as the reference does them."""
    height, width = frame.shape[:2]
    if transform.rotation:
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), transform.rotation, 1.0)
        frame = cv2.warpAffine(frame, turn, (width, height))
    left, top = transform.left, transform.top
    image = Image.fromarray(frame).resize(transform.resize, Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + transform.crop_size, top + transform.crop_size))
    if transform.blur_radius is not None:
        image = image.filter(ImageFilter.GaussianBlur(transform.blur_radius))
    if transform.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image.resize((transform.size, transform.size), Image.Resampling.BICUBIC))


def scene(width, height, seed=0, detail=1.0):
    """A frame with edges, gradients and a little noise; no two corners look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frame = np.stack([90 + 80 * x / width, 60 + 100 * y / height, 120 + 60 * np.cos((x + y) / width * 9)], axis=-1)
    for _ in range(8):
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        frame = cv2.circle(np.ascontiguousarray(frame), centre, int(rng.integers(width // 20, width // 6)), colour, -1)
    frame += rng.normal(0, 2 * detail, frame.shape[:2])[..., None]
    return np.clip(cv2.GaussianBlur(frame, (0, 0), 0.7), 0, 255).astype(np.uint8)


def difference(transform, frame, **changes):
    """Mean absolute difference of a transform, with some fields changed, from the reference's chain without."""
    warped = transformed(dataclasses.replace(transform, **changes), frame)
    return np.abs(warped.astype(float) - reference_chain(transform, frame)).mean()


NVGESTURE = {"resize": (256, 256), "reference_nvgesture_crop": True}
CENTRE = ClipTransform(resize=(320, 240), crop_size=224, size=224, left=48, top=8)


def test_a_crop_and_a_flip_without_scaling_are_exact():
    frame = scene(320, 240)
    np.testing.assert_array_equal(transformed(CENTRE, frame), frame[8:232, 48:272])
    flipped = dataclasses.replace(CENTRE, flip=True, left=3, top=16)
    np.testing.assert_array_equal(transformed(flipped, frame), frame[16:240, 3:227][:, ::-1])


@pytest.mark.parametrize(
    ("frame_size", "transform"),
    [
        ((320, 240), ClipTransform((256, 256), 224, 224, 32, 32)),  # NvGesture, IsoGD, Jester
        ((320, 240), ClipTransform((320, 240), 200, 224, 60, 20)),  # THU-READ
        ((320, 240), ClipTransform((320, 240), 224, 64, 5, 9, flip=True)),
        ((320, 240), ClipTransform((320, 240), 224, 112, 48, 8)),
        ((1920, 1080), CENTRE),
        ((1920, 1080), ClipTransform((320, 240), 224, 128, 96, 0)),
        ((100, 80), CENTRE),
    ],
)
def test_one_warp_gives_the_chain_of_the_reference(frame_size, transform):
    assert difference(transform, scene(*frame_size)) < GREY_LEVEL


@pytest.mark.parametrize("angle", [-45, -10, 3, 90])
@pytest.mark.parametrize("flip", [False, True])
def test_rotation_comes_first_anticlockwise_on_black(angle, flip):
    transform = dataclasses.replace(CENTRE, resize=(256, 256), left=20, rotation=angle, flip=flip)
    assert difference(transform, scene(320, 240)) < GREY_LEVEL
    assert difference(transform, scene(320, 240), rotation=angle + 1) > 2 * GREY_LEVEL


def test_fine_detail_of_a_large_frame_does_not_alias():
    # A checkerboard of single pixels is flat grey once it is shrunk; without averaging it would leave a pattern.
    y, x = np.mgrid[:1080, :1920]
    board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, axis=-1)
    for rotation in (0, 9):
        inside = transformed(dataclasses.replace(CENTRE, rotation=rotation), board)[40:-40, 40:-40]
        assert np.abs(inside.astype(float) - 127.5).max() < 8


@pytest.mark.parametrize("size", [224, 112])
@pytest.mark.parametrize("radius", [0.1, 0.8, 2.0])
def test_blur_is_a_gaussian_of_that_many_pixels_of_the_crop(size, radius):
    transform = dataclasses.replace(CENTRE, size=size, blur_radius=radius, flip=True)
    frame = scene(320, 240, detail=4)
    assert difference(transform, frame) < GREY_LEVEL
    if radius == 2.0:
        for other in (None, 1.2 * radius):
            assert difference(transform, frame, blur_radius=other) > 2 * difference(transform, frame)


@pytest.mark.parametrize(
    ("crops", "fields", "expected"),
    [
        (1, {"blur": True}, [(48, 8)]),
        (1, NVGESTURE, [(32, 32)]),
        (3, {"resize": (240, 234)}, [(0, 5), (8, 5), (16, 5)]),
        (3, {"resize": (234, 240)}, [(5, 0), (5, 8), (5, 16)]),
        (5, {"resize": (240, 234)}, [(0, 0), (16, 0), (0, 10), (16, 10), (8, 5)]),
        (5, NVGESTURE, [(10, 10), (32, 10), (10, 32), (32, 32), (21, 21)]),
    ],
)
def test_evaluation_crops_lie_in_the_middle_along_the_longer_side_or_in_the_corners(crops, fields, expected):
    settings_ = config(**fields)
    settings_.eval.crops = crops
    found = transforms.evaluation_transforms(settings_)
    assert [(transform.left, transform.top) for transform in found] == expected
    assert all(transform.rotation == 0 and not transform.flip and not transform.blur_radius for transform in found)


def draws(config_, number=3000):
    rng = np.random.default_rng(0)
    return [transforms.draw_transform(config_, rng) for _ in range(number)]


def test_training_draws_every_crop_with_both_ends():
    drawn = draws(config(resize=(230, 227)))
    assert {d.left for d in drawn} == set(range(7))
    assert {d.top for d in drawn} == set(range(4))
    assert {(d.left, d.top) for d in draws(config(resize=(224, 224)), 50)} == {(0, 0)}
    nvgesture = draws(config(**NVGESTURE))
    assert {d.left for d in nvgesture} == {d.top for d in nvgesture} == set(range(10, 33))


def test_training_draws_rotation_flip_and_blur_as_often_as_set():
    drawn = draws(config(rotation_probability=0.8, rotation_degrees=(-3, 3), flip_probability=0.25, blur=True))
    assert {d.rotation for d in drawn} == set(range(-3, 3))
    assert np.mean([d.rotation == 0 for d in drawn]) == pytest.approx(0.2 + 0.8 / 6, abs=0.05)
    assert np.mean([d.flip for d in drawn]) == pytest.approx(0.25, abs=0.05)
    radii = [d.blur_radius for d in drawn if d.blur_radius is not None]
    assert len(radii) / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert (min(radii), max(radii)) == pytest.approx((0.1, 2), abs=0.05)
    switched_off = draws(config(rotation_probability=0, flip_probability=0), 200)
    assert {(d.rotation, d.flip, d.blur_radius) for d in switched_off} == {(0, False, None)}


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    frame_size=st.sampled_from([(320, 240), (512, 424), (200, 301), (64, 48)]),
    fields=st.fixed_dictionaries({"rotation_probability": st.sampled_from([0.0, 1.0]), "blur": st.booleans()}),
    size=st.sampled_from([64, 112, 224]),
)
def test_colouring_only_the_visible_part_gives_the_result_of_the_whole_frame(seed, frame_size, fields, size):
    transform = transforms.draw_transform(config(size, **fields), np.random.default_rng(seed))
    frame = scene(*frame_size, seed=seed)
    seen = []

    def colour(part):
        seen.append(part.shape)
        return 255 - part

    out = np.empty((size, size, 3), np.uint8)
    transform(frame, out, colour)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_MARGIN", 10_000)  # the whole frame
        np.testing.assert_array_equal(out, transformed(transform, 255 - frame))
    assert np.prod(seen[0]) <= frame.size
