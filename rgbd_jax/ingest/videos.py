"""Videos, read by what they hold, whatever their names, and within limits, whatever their headers claim."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import UInt8

from rgbd_jax.data.frames import MAX_PIXELS, check_size
from rgbd_jax.ingest.problems import bad_clip
from rgbd_jax.regular_files import check_regular

VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
STANDARD_INPUT = "-"
# FFmpeg's names of the formats of these suffixes. It knows many more, some of which (play lists) open other files.
_FORMATS = "mov,matroska,avi"
_LIVE_FORMATS = f"{_FORMATS},mpegts"
_LIMIT = {"max_pixels": str(MAX_PIXELS)}  # also when the size changes


def is_video(path: Path) -> bool:
    """Returns whether `path` is named as a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def open_video(path: Path, *, live: bool = False) -> InputContainer:
    """Opens a video, which the caller closes; with `live`, also MPEG-TS, a named pipe or, as "-", standard input.

    Raises RawDataError if it cannot be opened, has no frames, or too large ones by its header.
    """
    standard_input = live and str(path) == STANDARD_INPUT
    if not standard_input and not (live and path.is_fifo()):
        check_regular(path, bad_clip)
    name = "pipe:0" if standard_input else f"file:{path}"  # "12:30.mp4" alone would be a protocol named 12
    try:
        container = av.open(name, options={"format_whitelist": _LIVE_FORMATS if live else _FORMATS, **_LIMIT})
    except (av.FFmpegError, ValueError) as error:
        what = f"cannot be opened as a video ({', '.join(VIDEO_SUFFIXES)}); is it empty, truncated or damaged?"
        raise bad_clip(path, what) from error
    try:
        if not container.streams.video or not container.streams.video[0].codec_context:
            raise ValueError("holds no video that can be decoded")
        stream = container.streams.video[0]
        if not stream.width * stream.height:  # as neither the header nor the first frames give one
            raise ValueError(f"holds no frame that can be decoded: damaged, or larger than {MAX_PIXELS:,} pixels")
        check_size(stream.width, stream.height)
        stream.codec_context.options = _LIMIT
    except ValueError as error:
        container.close()
        raise bad_clip(path, str(error)) from error
    return container


def announced_frames(container: InputContainer) -> int:
    """Returns how many frames a video has by its header, some of which record no more than a duration; 0 if unknown."""
    stream = container.streams.video[0]
    seconds = (container.duration or 0) / av.time_base
    if not seconds and stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    return stream.frames or int(seconds * recorded_rate(container) + 0.5)


def recorded_rate(container: InputContainer) -> float:
    """Returns the frames a second of a video; 0 if unknown."""
    return float(container.streams.video[0].guessed_rate or 0)


def decoded_frames(container: InputContainer) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the frames of a video just opened, upright, BGR, as OpenCV decodes them; ValueError if one is damaged."""
    try:
        for frame in container.decode(container.streams.video[0]):
            check_size(frame.width, frame.height)  # some decoders have no limit of their own
            image = frame.reformat(format="bgr24", interpolation="BICUBIC").to_ndarray()  # h w 3
            yield np.ascontiguousarray(np.rot90(image, frame.rotation // 90)) if frame.rotation else image
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: damaged, or larger than {MAX_PIXELS:,} pixels") from error
