"""Limits of what is uploaded, without browser and server in between, which do not let everything through to them."""

import re

import cv2
import numpy as np
import pytest

from rgbd_jax.inference.clips import ClipError
from rgbd_jax.tools.page.limits import Limits
from rgbd_jax.tools.page.uploads import clip_of_uploads

LIMITS = Limits(megabytes=1, frames=5, side=64)


def frames(folder, count, height=48, width=64):
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return paths


def clip_of(paths, tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    return clip_of_uploads({"rgb": paths}, folder, LIMITS)


def test_a_clip_within_the_limits_is_taken(tmp_path):
    clip, _ = clip_of(frames(tmp_path, 5), tmp_path)
    assert len(list(clip.paths["rgb"].iterdir())) == 5


@pytest.mark.parametrize(
    ("count", "height", "width", "message"),
    [
        (6, 48, 64, "0.png and 5 more files"),
        (2, 48, 65, "65x48"),
        (2, 65, 64, "64x65"),
    ],
)
def test_more_than_the_limits_allow_is_refused(tmp_path, count, height, width, message):
    with pytest.raises(ClipError, match=re.escape(message)):
        clip_of(frames(tmp_path, count, height, width), tmp_path)


def test_files_that_came_one_by_one_are_too_large_together(tmp_path):
    paths = frames(tmp_path, 2)
    for path in paths:
        path.write_bytes(path.read_bytes() + bytes(600_000))
    with pytest.raises(
        ClipError, match=re.escape("0.png and 1 more files: 1.1 MB, more than 1 MB; take a shorter clip")
    ):
        clip_of(paths, tmp_path)
