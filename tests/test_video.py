"""Videos that the package writes: what another decoder finds in them, and what is left when writing fails."""

import av
import cv2
import numpy as np
import pytest

from rgbd_jax.inference.video import write_video


def moving(count=12, height=48, width=64):
    """Smooth coloured frames, each another."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return [np.roll(picture, 3 * number, axis=1) for number in range(count)]


def decoded(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("height", [48, 47])
@pytest.mark.parametrize("width", [64, 65])
def test_frames_come_back_in_order_with_even_sizes(tmp_path, height, width):
    path = tmp_path / "new" / "clip.mp4"
    frames = moving(height=height, width=width)
    assert write_video(path, iter(frames), 12.5) == len(frames)
    found, speed = decoded(path)
    assert (len(found), speed) == (len(frames), 12.5)
    for number, frame in enumerate(found):
        assert frame.shape == (48, 2 * ((width + 1) // 2), 3)
        apart = [np.abs(frame[:height, :width].astype(int) - other).mean() for other in frames]
        assert np.argmin(apart) == number
        assert apart[number] < 8  # half of the colours are averaged over 2x2 pixels
        added = frame[height:].astype(int) - frame[height - 1]
        assert added.size == 0 or np.abs(added).mean() < 12  # next to black it would be 128


def test_every_browser_can_play_it_while_it_loads(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving(), 30000 / 1001)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.colorspace, context.color_range) == ("h264", "yuv420p", 1, 1)
        assert float(stream.average_rate) == pytest.approx(29.97003, abs=1e-5)
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (30, 30, 30)])
def test_colours_are_kept(tmp_path, colour):
    path = tmp_path / "clip.mp4"
    write_video(path, [np.full((32, 32, 3), colour, np.uint8)] * 2, 25)
    with av.open(str(path)) as container:  # goes by the tags, as browsers do
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_allclose(frame.mean(axis=(0, 1)), colour, atol=3)


@pytest.mark.parametrize(
    ("frames", "speed", "said"),
    [
        ([], 25, "no frame"),
        ([np.zeros((8, 8), np.uint8)], 25, r"frame 0 is uint8 of shape \(8, 8\)"),
        ([np.zeros((8, 8, 3), np.float32)], 25, "frame 0 is float32"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], 25, r"frame 1 has shape \(8, 9, 3\)"),
        (moving(), 0, "0 frames a second"),
        (moving(), float("nan"), "nan frames a second"),
    ],
)
def test_what_makes_no_video_leaves_nothing(tmp_path, frames, speed, said):
    path = tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match=said) as raised:
        write_video(path, frames, speed)
    assert str(path) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_failure_in_the_middle_keeps_the_old_video(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving(), 25)
    old = path.read_bytes()

    def breaks_off():
        yield from moving(90)  # the encoder holds the first ones back, and the file appears with what it gives out
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, breaks_off(), 25)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_names_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.avi is not named"):
        write_video(tmp_path / "clip.avi", moving(), 25)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_video(tmp_path / "file" / "clip.mp4", moving(), 25)
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(OSError, match=r"clip\.mp4"):
        write_video(tmp_path / "clip.mp4", moving(), 25)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.mp4", "file"]
