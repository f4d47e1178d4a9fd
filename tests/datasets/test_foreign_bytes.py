"""Readers of foreign bytes under random damage: a result or an error that names the place, in bounded memory."""

import cv2
import numpy as np
from hypothesis import strategies as st

from rgbd_jax.data.frames import decode_frame, decode_image, image_size
from rgbd_jax.inference.clips import find_clips
from rgbd_jax.inference.video import write_video
from rgbd_jax.ingest.clip_files import COLOUR, MAX_FRAMES, FrameRange, check_headers, read_clip
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.split_lists import MAX_CLASSES, read_split_list
from tests.datasets.conftest import frame
from tests.fuzz import damaged, error_of, examples, fuzz
from tests.made_raw_data import video_of


@examples
def test_lists(tmp_path, examples):
    file = tmp_path / "clips.txt"
    numbers = st.integers().map(str) | st.integers(-9, 9).map(str)
    words = st.text(max_size=9) | numbers | st.sampled_from(["..", "/", "~", "~nobody", "#", "\0", "x" * 300])
    lines = st.tuples(words, numbers, numbers).map(" ".join) | st.lists(words, max_size=4).map(" ".join)
    text = st.lists(lines, max_size=4).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))

    def check(content):
        file.write_bytes(content)
        problems = []
        try:
            clips = read_split_list(file, problems)
        except RawDataError as error:
            clips, problems = [], error.problems
            assert problems
        assert all(0 <= clip.label < MAX_CLASSES and 1 <= clip.frame_count <= MAX_FRAMES for clip in clips)
        for problem in problems:
            assert problem.where.startswith(str(file))
            assert str(problem).isprintable()
        message = str(error_of(lambda: find_clips({"rgb": [str(file)]}, ["rgb"])) or file)
        assert message.startswith(str(file))

    fuzz(check, text | st.binary(max_size=60), examples)


@examples
def test_image_headers(examples):
    colour, deep = np.indices((12, 16)).sum(0).astype(np.uint8), np.full((12, 16), 3000, np.uint16)
    progressive = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1]
    grey, depth = (cv2.imencode(".png", image)[1].tobytes() for image in (colour, deep))
    originals = [frame("a"), frame("a", "grey"), frame("a", suffix=".png"), progressive.tobytes(), grey, depth]

    def check(content):
        size = image_size(content)
        for decode in (decode_image, lambda x: decode_frame(x, "rgb"), lambda x: decode_frame(x, "depth")):
            try:
                height, width = decode(content).shape[:2]
            except ValueError:
                continue
            assert (width, height) == size  # whatever is decoded has the size that is checked

    fuzz(check, damaged(originals), examples)


@examples
def test_videos(tmp_path, examples):
    images = [np.full((32, 48, 3), 20 * number, np.uint8) for number in range(6)]
    for name, codec in (("a.avi", "MJPG"), ("b.mkv", "mp4v"), ("c.avi", "XVID")):
        video_of(tmp_path / name, images, codec)
    write_video(tmp_path / "d.mp4", images, 15)
    originals = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    file = tmp_path / "case.mp4"

    def check(content):
        file.write_bytes(content)
        for read in (check_headers, lambda frames: read_clip(frames, COLOUR)):
            error = error_of(lambda read=read: read(FrameRange(file)))
            assert error is None or all(problem.where == str(file) for problem in error.problems)

    fuzz(check, damaged(originals), examples)
