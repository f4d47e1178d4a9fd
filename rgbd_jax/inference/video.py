"""Videos that every browser plays: H.264 in MP4, written whole or not at all."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import UInt8

from rgbd_jax.atomic_write import atomic_write

SPEEDS = (0.01, 1000.0)  # slowest and fastest, frames a second
_QUALITY = {"crf": "18", "preset": "medium"}  # x264's; nothing is seen to be lost


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], frames_per_second: float) -> int:
    """Writes a video that browsers, players and editors read: H.264, 4:2:0, the index first, no sound.

    A frame with an odd height or width gets its last row or column twice, as 4:2:0 needs even ones. The file appears
    under its name when it is complete; an older one of that name stays until then.

    Args:
        path: the file, named *.mp4; its folder is made.
        frames: RGB, all of one size; taken one at a time.
        frames_per_second: how fast they follow each other, 0.01 to 1000.

    Returns:
        The number of frames.

    Raises:
        ValueError: the name or the speed cannot be used, there is no frame, or one is no picture or of another size.
        OSError: the file cannot be written; names it.
    """
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path} is not named *.mp4; that is what is written")
    slowest, fastest = SPEEDS
    if not slowest <= frames_per_second <= fastest:
        raise ValueError(f"{path}: {frames_per_second} frames a second; expected {slowest:g} to {fastest:g}")
    each = _checked(path, frames)
    first = next(each, None)
    if first is None:
        raise ValueError(f"{path}: there is no frame to write")
    with atomic_write(path) as unfinished, _named_errors(path):
        return _encode(unfinished, first, itertools.chain([first], each), frames_per_second)


def _checked(path: Path, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the frames with even sizes."""
    shape = None
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(f"{path}: frame {number} is {frame.dtype} of shape {frame.shape}; expected uint8 h w 3")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"{path}: frame {number} has shape {frame.shape}, the first {shape}; expected one size")
        height, width = frame.shape[:2]
        yield np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _encode(path: Path, first: np.ndarray, frames: Iterable[np.ndarray], frames_per_second: float) -> int:
    rate = Fraction(frames_per_second).limit_denominator(1001)
    count = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        # Untagged, players guess what the colours mean from the size of the picture, and not all of them alike.
        context = stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode(None))
    return count


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written: {reason}; make room, or give another place") from error
