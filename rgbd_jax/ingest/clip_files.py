"""Clips as users have them on disk: folders of frames and videos, read into encoded frames.

Frames that are JPEG or 8-bit PNG are handed over byte for byte; 16-bit depth becomes PNG that is decoded faster, and
the frames of a video JPEG of quality 95. Every frame is decoded once: there is no other way to know that it can be.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from rgbd_jax.data.codec import encode_depth, encode_jpeg
from rgbd_jax.ingest.problems import Problem, RawDataError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")

IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# Colour maps spread the channels by 30 and more; compressing grey frames as a video spreads them by up to 3.
GREY_SPREAD = 8.0
# Containers without an index only estimate how many frames they hold.
_ESTIMATE_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class FrameKind:
    """What a decoded frame holds.

    Attributes:
        dtype: "uint8" or "uint16".
        channels: 1 or 3.
    """

    dtype: str
    channels: int

    def __str__(self) -> str:
        return f"{self.dtype} with {self.channels} channel{'s' if self.channels > 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Recording:
    """Where the frames of a clip lie, of one modality.

    Attributes:
        path: folder of frames, or video.
        first: the first frame that is used, counted from 0.
        count: how many frames are used; all that follow if None.
        pattern: file name of frame i as `pattern % (i + pattern_first)`; None for natural numeric order.
        pattern_first: number of the first frame in file names that follow `pattern`.
    """

    path: Path
    first: int = 0
    count: int | None = None
    pattern: str | None = None
    pattern_first: int = 0

    @property
    def stop(self) -> int | None:
        """The frame after the last one that is used, None if all are used."""
        return None if self.count is None else self.first + self.count


COLOUR = FrameKind("uint8", 3)
GREY = FrameKind("uint8", 1)
DEPTH_16_BIT = FrameKind("uint16", 1)
MODALITY_KINDS = {"rgb": (COLOUR,), "depth": (DEPTH_16_BIT, GREY, COLOUR)}
"""Modality to the kinds of frames that it may have."""


def is_video(path: Path) -> bool:
    """Returns whether `path` is named as a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def clip_name(path: str) -> str:
    """Returns the name of the clip at `path`: without the suffix, if that is one of a video."""
    pure = PurePosixPath(path)
    return str(pure.with_suffix("") if pure.suffix.lower() in VIDEO_SUFFIXES else pure)


def find_clip(root: Path, name: str) -> Path | None:
    """Finds the folder of frames or the video of a clip.

    Args:
        root: folder of the modality.
        name: the clip, relative to `root`, as `clip_name` returns it.

    Returns:
        The folder or the video, None if there is neither.

    Raises:
        RawDataError: there is more than one.
    """
    folder = root / name
    found = [folder] if folder.is_dir() else []
    for suffix in VIDEO_SUFFIXES:
        video = folder.with_name(folder.name + suffix)
        found += [path for path in (video, video.with_suffix(suffix.upper())) if path.is_file()][:1]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise RawDataError([Problem(str(folder), f"expected one folder or video, found {names}", kind="duplicated")])
    return found[0] if found else None


def frame_files(recording: Recording) -> list[Path]:
    """Lists the frames of a folder that are used, in time order.

    Without a pattern, frames follow each other in natural numeric order ("frame2.png" before "frame10.png").

    Raises:
        RawDataError: the folder holds no frame or too few, a frame is missing between others, or something in it is no
            frame.
    """
    folder, pattern = recording.path, recording.pattern
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural_key)
    if not names:
        raise RawDataError([Problem(str(folder), "holds no frame", kind="missing")])
    for name in names:
        if Path(name).suffix.lower() not in FRAME_SUFFIXES:
            raise RawDataError([Problem(str(folder / name), f"is no frame ({', '.join(FRAME_SUFFIXES)})")])
    for name, following in itertools.pairwise(names):
        if Path(name).stem == Path(following).stem:
            what = f"holds two files of one frame, {name} and {following}"
            raise RawDataError([Problem(str(folder), what, kind="duplicated")])
    stop = len(names) if recording.stop is None else recording.stop
    if stop > len(names) or recording.first >= stop:
        wanted = f"{recording.count} frames" if recording.count is not None else "a frame"
        after = f" from number {recording.first} on" if recording.first else ""
        raise RawDataError([Problem(str(folder), f"expected {wanted}{after}, found {len(names)}", kind="missing")])
    if pattern is None:
        names = names[recording.first : stop]
        missing = _missing_number(names)
        if missing is not None:
            what = f"frame {missing} is missing: frames count by ones around it"
            raise RawDataError([Problem(str(folder), what, kind="missing")])
    else:
        present = set(names)
        names = [pattern % (i + recording.pattern_first) for i in range(recording.first, stop)]
        absent = [name for name in names if name not in present]
        if absent:
            what = f"is missing ({len(absent)} of {len(names)} frames)"
            raise RawDataError([Problem(str(folder / absent[0]), what, kind="missing")])
    return [folder / name for name in names]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key of natural numeric order: "frame2" before "frame10"."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _missing_number(names: list[str]) -> int | None:
    """Returns the first number that is missing from frames that count by ones, None if none is.

    Numbers that mostly do not count by ones (every fifth frame kept, times of capture) tell nothing about gaps.
    """
    numbers = [int(found[-1]) for name in names if (found := re.findall("[0-9]+", Path(name).stem))]
    steps = np.diff(numbers)
    gaps = np.flatnonzero(steps > 1)
    if len(numbers) < len(names) or len(gaps) == 0 or 2 * len(gaps) > len(steps):
        return None
    return numbers[gaps[0]] + 1


def clip_kind(recording: Recording, modality: str) -> FrameKind:
    """Returns the kind of a clip's frames: of the first one in a folder, of all in a video.

    Raises:
        RawDataError: the clip cannot be read, or is of a kind that the modality may not have.
    """
    if is_video(recording.path):
        coloured = modality == "rgb" or any(colour_spread(frame) > GREY_SPREAD for frame in video_frames(recording))
        return COLOUR if coloured else GREY
    file = frame_files(recording)[0]
    kind = _kind_of(_decode(file, file.read_bytes()))
    if kind not in MODALITY_KINDS[modality]:
        expected = " or ".join(map(str, MODALITY_KINDS[modality]))
        raise RawDataError([Problem(str(file), f"is {kind}; {modality} frames are {expected}")])
    return kind


def read_clip(recording: Recording, kind: FrameKind) -> list[bytes]:
    """Reads the frames of a clip and makes sure that each can be decoded.

    Args:
        recording: which frames.
        kind: kind that all frames must have.

    Returns:
        The encoded frames (JPEG or PNG), in time order.

    Raises:
        RawDataError: a frame is missing, cannot be decoded or is of another kind.
    """
    if is_video(recording.path):
        return _read_video(recording, kind)
    frames = []
    for file in frame_files(recording):
        content = file.read_bytes()
        image = decode_frame(file, content, kind)
        frames.append(encode_depth(image) if kind == DEPTH_16_BIT else content)
    return frames


def decode_frame(file: Path, content: bytes, kind: FrameKind) -> np.ndarray:
    """Decodes a frame.

    Args:
        file: where it comes from, for messages.
        content: JPEG or PNG.
        kind: kind that it must have.

    Returns:
        The frame, h w or h w 3 (BGR).

    Raises:
        RawDataError: it cannot be decoded or is of another kind.
    """
    image = _decode(file, content)
    if _kind_of(image) != kind:
        raise RawDataError([Problem(str(file), f"is {_kind_of(image)}; the data set's frames are {kind}")])
    return image


def _decode(file: Path, content: bytes) -> np.ndarray:
    if not content.startswith(IMAGE_SIGNATURES):
        raise RawDataError([Problem(str(file), "is neither JPEG nor PNG" if content else "is empty")])
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise RawDataError([Problem(str(file), f"cannot be decoded: truncated or damaged ({len(content)} bytes)")])
    return image


def _kind_of(image: np.ndarray) -> FrameKind:
    return FrameKind(str(image.dtype), 1 if image.ndim == 2 else image.shape[2])


def _read_video(recording: Recording, kind: FrameKind) -> list[bytes]:
    path = recording.path
    if kind.dtype != "uint8":
        raise RawDataError([Problem(str(path), f"is a video of 8 bits; the data set's frames are {kind}")])
    frames: list[bytes] = []
    for frame in video_frames(recording):
        if kind == GREY:
            if colour_spread(frame) > GREY_SPREAD:
                number = recording.first + len(frames)
                raise RawDataError([Problem(str(path), f"frame {number} is coloured; the data set's are {kind}")])
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        frames.append(encode_jpeg(frame))
    return frames


def video_frames(recording: Recording) -> Iterator[np.ndarray]:
    """Yields the frames of a video that are used (h w 3, BGR).

    Raises:
        RawDataError: the video ends before its header says, or has fewer frames than are used.
    """
    path = recording.path
    capture = open_video(path)
    try:
        announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        count = 0
        while count != recording.stop and (read := capture.read())[0]:
            if count >= recording.first:
                yield read[1]
            count += 1
    finally:
        capture.release()
    if count == 0:
        raise RawDataError([Problem(str(path), "holds no frame that can be decoded")])
    if recording.stop is not None and count < recording.stop:
        raise RawDataError([Problem(str(path), f"expected {recording.stop} frames, found {count}", kind="missing")])
    if recording.stop is None and count < announced - _tolerance(announced):
        raise RawDataError([Problem(str(path), f"ends after {count} of {announced:.0f} frames: truncated or damaged")])


def open_video(path: Path) -> cv2.VideoCapture:
    """Opens a video; `isOpened()` of the result says whether it could be. OpenCV prints nothing of its own."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)


def frame_bounds(video: Path) -> tuple[int, float]:
    """Returns how many frames a video has at least and at most by its header, without decoding any.

    Where the header does not say, or cannot be read, these are 0 and infinity.
    """
    capture = open_video(video)
    announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    if announced < 1:
        return 0, float("inf")
    return max(0, int(announced - _tolerance(announced))), announced + _tolerance(announced)


def _tolerance(announced: float) -> float:
    return max(1.0, _ESTIMATE_TOLERANCE * announced)


def colour_spread(frame: np.ndarray) -> float:
    """Returns how far the channels of a frame (h w c) lie apart, on average over its pixels."""
    blue, green, red = cv2.split(frame)
    highest, lowest = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return float(cv2.mean(cv2.subtract(highest, lowest))[0])
