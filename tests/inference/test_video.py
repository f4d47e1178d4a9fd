"""Written videos, as another decoder reads them, and what a failure leaves."""

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


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 65)])
def test_frames_come_back_in_order_with_even_sizes(tmp_path, height, width):
    path = tmp_path / "new" / "clip.mp4"
    frames = moving(height=height, width=width)
    write_video(path, iter(frames), 30000 / 1001)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.colorspace, context.color_range) == ("h264", "yuv420p", 1, 1)
        assert float(stream.average_rate) == pytest.approx(29.97003, abs=1e-5)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == len(frames)
    for number, frame in enumerate(decoded):
        assert frame.shape == (48, 2 * ((width + 1) // 2), 3)
        differences = [np.abs(frame[:height, :width].astype(int) - other).mean() for other in frames]
        assert np.argmin(differences) == number
        assert differences[number] < 8  # half of the colours are averaged over 2x2 pixels
        added = frame[height:].astype(int) - frame[height - 1]
        assert added.size == 0 or np.abs(added).mean() < 12  # next to black it would be 128
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # it plays while it loads


def test_colours_are_kept(tmp_path):
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (30, 30, 30)):
        write_video(tmp_path / "clip.mp4", [np.full((32, 32, 3), colour, np.uint8)] * 2, 25)
        with av.open(str(tmp_path / "clip.mp4")) as container:  # reads the tags, as browsers do
            frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
        np.testing.assert_allclose(frame.mean(axis=(0, 1)), colour, atol=3)


def test_a_failure_keeps_the_old_video_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving(), 25)
    old = path.read_bytes()

    def interrupted():
        yield from moving(90)  # the encoder holds the first ones back
        raise KeyboardInterrupt

    for frames, error, message in (
        (interrupted(), KeyboardInterrupt, None),
        ([], ValueError, r"clip\.mp4: there is no frame"),
        ([np.zeros((8, 8, 3), np.float32)], ValueError, "float32"),
    ):
        with pytest.raises(error, match=message):
            write_video(path, frames, 25)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (old, [path])
    with pytest.raises(OSError, match=r"clip\.mp4"):
        write_video(path / "clip.mp4", moving(), 25)
