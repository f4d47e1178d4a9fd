"""Depth encodings, the colour map and the crop around the person."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from rgbd_jax.config import default_config
from rgbd_jax.data import depth


def config(**fields):
    result = default_config().data.depth
    result.update(fields)
    return result


def cut_and_coloured(frame, settings):
    return depth.colour_depth(depth.cut_depth(frame, settings), settings)


JET = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)[0]  # blue, green, red

frames_16 = st_numpy.arrays(np.uint16, (6, 7))
frames_8 = st_numpy.arrays(np.uint8, (6, 7))


@settings(deadline=None)
@given(frame=st.one_of(frames_16, frames_8))
def test_reference_encoding_is_255_times_depth_modulo_256(frame):
    expected = np.array([[255 * int(value) % 256 for value in row] for row in frame])
    wrapped = config(encoding="reference_wrapped")
    np.testing.assert_array_equal(depth.encode_depth(frame, wrapped), expected)
    np.testing.assert_array_equal(depth.colour_depth(frame, wrapped), JET[expected])
    wrapped.colour_map = "grey"
    np.testing.assert_array_equal(depth.colour_depth(frame, wrapped), np.dstack([expected] * 3))


@settings(deadline=None)
@given(frame=frames_16, near=st.integers(0, 3000), extent=st.integers(1, 10000))
def test_linear_encoding_falls_from_near_to_far_and_keeps_zero(frame, near, extent):
    grey = depth.encode_depth(frame, config(range_mm=(near, near + extent))).astype(int)
    value = frame.astype(float)
    exact = np.clip(255 - 254 * (value - near) / extent, 1, 255)
    assert (np.abs(grey - exact)[frame > 0] <= 0.5 + 1e-9).all()
    assert (grey[frame == 0] == 0).all()


@given(frame=frames_8)
def test_linear_encoding_takes_8_bit_depth_as_it_is(frame):
    np.testing.assert_array_equal(depth.encode_depth(frame, config()), frame)


def person(width, height, boxes):
    frame = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in boxes:
        frame[top:bottom, left:right] = 90
    return frame


@pytest.mark.parametrize(
    ("boxes", "centre"),
    [
        ([(240, 180, 281, 261)], (260, 220)),
        ([(200, 280, 241, 321), (300, 160, 341, 201)], (220, 180)),  # smallest x of one, smallest y of the other
        ([(240, 180, 281, 261), (30, 30, 32, 60)], (260, 220)),  # the erosion removes the sliver
        ([(240, 180, 281, 261), (30, 30, 45, 45)], (260, 220)),  # 15x15 grows to 23x23 at most: below 500
    ],
)
def test_person_box_is_centred_on_the_smallest_centres(boxes, centre):
    left, top, right, bottom = depth.person_box(person(512, 424, boxes))
    assert (right - left, bottom - top) == (320, 240)
    assert abs(left + 160 - centre[0]) <= 1  # the dilation by an even size leans to one side
    assert abs(top + 120 - centre[1]) <= 1


def test_a_frame_without_a_contour_takes_the_centre_crop():
    assert depth.person_box(np.zeros((424, 512), np.uint8)) == (96, 92, 416, 332)
    empty = np.zeros((424, 512), np.uint16)
    coloured = cut_and_coloured(empty, config(encoding="reference_wrapped", reference_person_crop=True))
    np.testing.assert_array_equal(coloured, np.broadcast_to(JET[0], (240, 320, 3)))


@settings(deadline=None, max_examples=50)
@given(
    size=st.tuples(st.integers(1, 600), st.integers(1, 500)),
    box=st.tuples(*[st.floats(0, 1)] * 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_person_crop_never_stops_a_run(size, box, dtype):
    width, height = size
    (left, right), (top, bottom) = (np.sort(box).reshape(2, 2).T * [[width], [height]]).astype(int)
    frame = person(width, height, [(left, top, right, bottom)]).astype(dtype)
    coloured = cut_and_coloured(frame, config(reference_person_crop=True, range_mm=(0, 255)))
    assert coloured.dtype == np.uint8
    assert 1 <= coloured.shape[0] <= min(height, 240)
    assert 1 <= coloured.shape[1] <= min(width, 320)


@pytest.mark.parametrize("value", [255, 256, 5000])
def test_the_box_in_colour_ignores_what_is_nearer_than_256_units(value):
    frame = np.where(person(512, 424, [(240, 180, 281, 261)]) > 0, value, 0).astype(np.uint16)
    found = depth.person_box_in_colour(frame, 1920, 1080)
    x, y = (260, 220) if value > 255 else (256, 212)  # the frame's centre, where there is nobody
    assert abs(found[0] - (1920 / 512 * x - 480)) <= 1920 / 512 + 1
    assert abs(found[1] - (1080 / 424 * y - 270)) <= 1080 / 424 + 1
    assert (found[2] - found[0], found[3] - found[1]) == (960, 540)


def test_boxes_are_clipped_at_the_frame():
    upper_left, lower_right = person(512, 424, [(5, 5, 46, 46)]), person(512, 424, [(460, 380, 501, 421)])
    assert depth.person_box(upper_left) == (0, 0, 320, 240)
    left, top, right, bottom = depth.person_box(lower_right)
    assert (right, bottom) == (512, 424)
    assert max(abs(left - 320), abs(top - 280)) <= 1
    assert depth.person_box_in_colour(upper_left.astype(np.uint16) << 8, 1920, 1080) == (0, 0, 960, 540)
    assert depth.person_box_in_colour(lower_right.astype(np.uint16) << 8, 1920, 1080)[2:] == (1920, 1080)
    with pytest.raises(ValueError, match="float32"):
        depth.colour_depth(np.zeros((4, 4), np.float32), config())


def test_cutting_before_encoding_is_cutting_after_it():
    frame = person(512, 424, [(240, 180, 281, 261), (350, 100, 400, 140)]).astype(np.uint16) * 37
    frame[20:60, 100:150] = 512  # wraps to 0: nobody, to the reference
    once = config(encoding="reference_wrapped", reference_person_crop=True)
    np.testing.assert_array_equal(
        depth.colour_depth(depth.crop_person(frame), config(encoding="reference_wrapped")),
        cut_and_coloured(frame, once),
    )
