"""Stored depth, depth encodings, the colour map and the crop around the person; JPEG is tested by the loader."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from rgbd_jax.config import default_config
from rgbd_jax.data import frames
from rgbd_jax.data.frames import colour_depth, crop_person, decode_frame, encode_depth, grey_depth, person_box

JET = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)[0]  # blue, green, red

frames_16 = st_numpy.arrays(np.uint16, (6, 7))
frames_8 = st_numpy.arrays(np.uint8, (6, 7))


def config(**fields):
    result = default_config().data.depth
    result.update(fields)
    return result


def person(*boxes):
    """A frame of 512x424 pixels that is 0 but for boxes."""
    frame = np.zeros((424, 512), np.uint8)
    for left, top, right, bottom in boxes:
        frame[top:bottom, left:right] = 90
    return frame


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
depths = st.sampled_from([np.uint8, np.uint16]).flatmap(lambda dtype: st_numpy.arrays(dtype, sizes))


@settings(deadline=None)
@given(depth=depths)
def test_stored_depth_is_a_png_and_comes_back_without_a_loss(depth):
    encoded = encode_depth(depth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames.cv2, "imdecode", None)  # its rows are copied, not inflated
        np.testing.assert_array_equal(decode_frame(encoded, "depth"), depth, strict=True)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED), depth)
    image = Image.open(io.BytesIO(encoded))
    image.verify()  # the checksums


@settings(deadline=None)
@given(depth=depths, level=st.integers(0, 9), cut=st.integers(1, 60))
def test_other_pngs_are_decoded_too_and_damaged_ones_refused(depth, level, cut):
    other = cv2.imencode(".png", depth, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()
    np.testing.assert_array_equal(decode_frame(other, "depth"), depth, strict=True)
    with pytest.raises(ValueError, match="the depth frame cannot be decoded"):
        decode_frame(encode_depth(depth)[: -cut - 16], "depth")


@settings(deadline=None)
@given(frame=st.one_of(frames_16, frames_8))
def test_reference_encoding_is_255_times_depth_modulo_256(frame):
    expected = np.array([[255 * int(value) % 256 for value in row] for row in frame])
    wrapped = config(encoding="reference_wrapped")
    np.testing.assert_array_equal(grey_depth(frame, wrapped), expected)
    np.testing.assert_array_equal(colour_depth(frame, wrapped)[..., :3], JET[expected])
    wrapped.colour_map = "grey"
    np.testing.assert_array_equal(colour_depth(frame, wrapped)[..., :3], np.dstack([expected] * 3))


@settings(deadline=None)
@given(frame=frames_16, near=st.integers(0, 3000), extent=st.integers(1, 10000), in_8_bits=frames_8)
def test_linear_encoding_falls_from_near_to_far_and_keeps_zero_and_8_bits(frame, near, extent, in_8_bits):
    linear = config(range_mm=(near, near + extent))
    exact = np.clip(255 - 254 * (frame.astype(float) - near) / extent, 1, 255)
    exact[frame == 0] = 0
    np.testing.assert_allclose(grey_depth(frame, linear), exact, rtol=0, atol=0.5 + 1e-9)
    np.testing.assert_array_equal(grey_depth(in_8_bits, linear), in_8_bits)


@pytest.mark.parametrize(
    ("boxes", "centre"),
    [
        ([(240, 180, 281, 261)], (260, 220)),
        ([(200, 280, 241, 321), (300, 160, 341, 201)], (220, 180)),  # smallest x of one, smallest y of the other
        ([(240, 180, 281, 261), (30, 30, 32, 60)], (260, 220)),  # the erosion removes the sliver
        ([(240, 180, 281, 261), (30, 30, 45, 45)], (260, 220)),  # 15x15 grows to 23x23 at most: below 500
        ([], (256, 212)),
    ],
)
def test_person_box_is_centred_on_the_smallest_centres(boxes, centre):
    frame = person(*boxes)
    left, top, right, bottom = person_box(frame)
    assert (right - left, bottom - top) == (320, 240)
    np.testing.assert_allclose((left + 160, top + 120), centre, atol=1)  # the dilation by an even size leans to a side
    left, top, right, bottom = person_box(frame, (1920, 1080))
    assert (right - left, bottom - top) == (960, 540)
    np.testing.assert_allclose((left + 480, top + 270), np.multiply(centre, (1920 / 512, 1080 / 424)), atol=4)


@settings(deadline=None, max_examples=50)
@given(
    size=st.tuples(st.integers(1, 600), st.integers(1, 500)),
    box=st.tuples(*[st.floats(0, 1)] * 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_person_crop_never_stops_a_run(size, box, dtype):
    (left, right), (top, bottom) = (np.sort(np.reshape(box, (2, 2))).T * size).T.astype(int)
    frame = np.zeros(size[::-1], dtype)
    frame[top:bottom, left:right] = 90
    height, width = crop_person(frame, config(reference_person_crop=True, range_mm=(0, 255))).shape
    assert 1 <= height <= min(size[1], 240)
    assert 1 <= width <= min(size[0], 320)
