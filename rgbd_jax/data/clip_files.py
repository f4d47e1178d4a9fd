"""Clips as users have them on disk: folders of frames and videos, read into encoded frames.

Frames that are JPEG or PNG are handed over byte for byte; the frames of a video become JPEG of quality 95. Every frame
is decoded once, because that is the only way to know that it can be.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from rgbd_jax.data.problems import Problem, RawDataError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_VIDEO_QUALITY = 95
# Colour maps spread the channels by 30 and more; compressing grey frames as a video spreads them by up to 3.
_GREY_SPREAD = 8.0
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
        raise RawDataError([Problem(str(folder), f"expected one folder or video, found {names}")])
    return found[0] if found else None


def frame_files(folder: Path, frame_count: int | None = None, pattern: str | None = None) -> list[Path]:
    """Lists the frames of a folder in time order.

    Args:
        folder: the clip.
        frame_count: how many frames are used, from the first one; all if None.
        pattern: file name of frame i as `pattern % i`, counted from 0; without it, frames follow each other in natural
            numeric order ("frame2.png" before "frame10.png").

    Returns:
        The files of the frames that are used.

    Raises:
        RawDataError: the folder holds no frame or too few, a frame is missing between others, or something in it is no
            frame.
    """
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural_key)
    if not names:
        raise RawDataError([Problem(str(folder), "holds no frame")])
    for name in names:
        if Path(name).suffix.lower() not in FRAME_SUFFIXES:
            raise RawDataError([Problem(str(folder / name), f"is no frame ({', '.join(FRAME_SUFFIXES)})")])
    for name, following in itertools.pairwise(names):
        if Path(name).stem == Path(following).stem:
            raise RawDataError([Problem(str(folder), f"holds two files of one frame, {name} and {following}")])
    if frame_count is not None and frame_count > len(names):
        raise RawDataError([Problem(str(folder), f"expected {frame_count} frames, found {len(names)}")])
    if pattern is None:
        names = names[:frame_count]
        missing = _missing_number(names)
        if missing is not None:
            raise RawDataError([Problem(str(folder), f"frame {missing} is missing: frames count by ones around it")])
    else:
        present = set(names)
        names = [pattern % i for i in range(len(names) if frame_count is None else frame_count)]
        absent = [name for name in names if name not in present]
        if absent:
            raise RawDataError([Problem(str(folder / absent[0]), f"is missing ({len(absent)} of {len(names)} frames)")])
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


def clip_kind(path: Path, modality: str) -> FrameKind:
    """Returns the kind of a clip's frames: of the first one in a folder, of all in a video.

    Raises:
        RawDataError: the clip cannot be read, or is of a kind that the modality may not have.
    """
    if is_video(path):
        coloured = modality == "rgb" or any(_spread(frame) > _GREY_SPREAD for frame in _video_frames(path))
        return COLOUR if coloured else GREY
    file = frame_files(path)[0]
    kind = _checked_kind(file, file.read_bytes())
    if kind not in MODALITY_KINDS[modality]:
        expected = " or ".join(map(str, MODALITY_KINDS[modality]))
        raise RawDataError([Problem(str(file), f"is {kind}; {modality} frames are {expected}")])
    return kind


def read_clip(path: Path, kind: FrameKind, frame_count: int | None = None, pattern: str | None = None) -> list[bytes]:
    """Reads the frames of a clip and makes sure that each can be decoded.

    Args:
        path: folder of frames or video.
        kind: kind that all frames must have.
        frame_count: how many frames are used, from the first one; all if None.
        pattern: as in `frame_files`.

    Returns:
        The encoded frames (JPEG or PNG), in time order.

    Raises:
        RawDataError: a frame is missing, cannot be decoded or is of another kind.
    """
    if is_video(path):
        return _read_video(path, kind, frame_count)
    frames = []
    for file in frame_files(path, frame_count, pattern):
        frames.append(file.read_bytes())
        found = _checked_kind(file, frames[-1])
        if found != kind:
            raise RawDataError([Problem(str(file), f"is {found}; the data set's frames are {kind}")])
    return frames


def _checked_kind(file: Path, content: bytes) -> FrameKind:
    """Decodes a frame and returns its kind."""
    if not content.startswith(_SIGNATURES):
        raise RawDataError([Problem(str(file), "is neither JPEG nor PNG" if content else "is empty")])
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise RawDataError([Problem(str(file), f"cannot be decoded: truncated or damaged ({len(content)} bytes)")])
    return FrameKind(str(image.dtype), 1 if image.ndim == 2 else image.shape[2])


def _read_video(path: Path, kind: FrameKind, frame_count: int | None) -> list[bytes]:
    if kind.dtype != "uint8":
        raise RawDataError([Problem(str(path), f"is a video of 8 bits; the data set's frames are {kind}")])
    frames: list[bytes] = []
    for frame in _video_frames(path):
        if len(frames) == frame_count:
            break
        if kind == GREY:
            if _spread(frame) > _GREY_SPREAD:
                raise RawDataError([Problem(str(path), f"frame {len(frames)} is coloured; the data set's are {kind}")])
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        frames.append(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _VIDEO_QUALITY])[1].tobytes())
    if frame_count is not None and len(frames) < frame_count:
        raise RawDataError([Problem(str(path), f"expected {frame_count} frames, found {len(frames)}")])
    return frames


def _video_frames(path: Path) -> Iterator[np.ndarray]:
    """Yields the frames of a video (h w 3, BGR); a video that ends before its header says is an error."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        count = 0
        while (read := capture.read())[0]:
            count += 1
            yield read[1]
    finally:
        capture.release()
    if count == 0:
        raise RawDataError([Problem(str(path), "holds no frame that can be decoded")])
    if count < announced - max(1.0, _ESTIMATE_TOLERANCE * announced):
        raise RawDataError([Problem(str(path), f"ends after {count} of {announced:.0f} frames: truncated or damaged")])


def _spread(frame: np.ndarray) -> float:
    """Returns how far the channels of a frame (h w c) lie apart, on average over its pixels."""
    blue, green, red = cv2.split(frame)
    highest, lowest = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return float(cv2.mean(cv2.subtract(highest, lowest))[0])
