"""Clips as users have them on disk: folders of frames and videos, read into encoded frames.

JPEG and 8-bit PNG frames are kept byte for byte; 16-bit depth becomes PNG that is decoded faster, and the frames of a
video JPEG of quality 95. Every frame is decoded once: nothing else shows that it can be.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from rgbd_jax.data.frames import encode_depth, encode_jpeg
from rgbd_jax.ingest.problems import bad_clip

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")

_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# Colour maps spread the channels by 30 and more; compressing grey frames as a video spreads them by up to 3.
GREY_SPREAD = 8.0
# Containers without an index only estimate how many frames they hold.
_ESTIMATE_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class FrameKind:
    """What a decoded frame holds: dtype "uint8" or "uint16", 1 or 3 channels."""

    dtype: str
    channels: int

    def __str__(self) -> str:
        return f"{self.dtype} with {self.channels} channel{'s' if self.channels > 1 else ''}"


COLOUR = FrameKind("uint8", 3)
GREY = FrameKind("uint8", 1)
DEPTH_16_BIT = FrameKind("uint16", 1)
_KINDS = {"rgb": (COLOUR,), "depth": (DEPTH_16_BIT, GREY, COLOUR)}


@dataclasses.dataclass(frozen=True)
class FrameRange:
    """The frames of a clip in one modality."""

    path: Path  # folder of frames, or video
    first: int | None = None  # number of the first frame that is used; None: 0 in a video, any in a folder
    count: int | None = None  # how many frames are used; all that follow if None

    @property
    def stop(self) -> int | None:
        """The frame after the last one that is used, None if all are used."""
        return None if self.count is None else (self.first or 0) + self.count


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """One clip of a raw data set."""

    name: str  # path of the clip in the folder of a modality, unique in its split
    label: int  # counted from 0
    where: str = dataclasses.field(repr=False)  # what names the clip: a line of a list ("file:line") or its folder
    frame_count: int | None = None  # how many frames are used, from the first one; all if None
    frames: Mapping[str, FrameRange] = dataclasses.field(default_factory=dict)  # by modality, once found on disk


def is_video(path: Path) -> bool:
    """Returns whether `path` is named as a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def clip_name(path: str) -> str:
    """Returns `path` without the suffix of a video."""
    pure = PurePosixPath(path)
    return str(pure.with_suffix("") if pure.suffix.lower() in VIDEO_SUFFIXES else pure)


def find_clip(folder: Path) -> Path | None:
    """Returns the clip that is either `folder`, of frames, or a video of that name; None if there is none."""
    found = [folder] if folder.is_dir() else []
    for suffix in VIDEO_SUFFIXES:
        videos = (folder.with_name(folder.name + suffix), folder.with_name(folder.name + suffix.upper()))
        found += [path for path in videos if path.is_file()][:1]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise bad_clip(folder, f"expected one folder or video, found {names}", "duplicated")
    return found[0] if found else None


def frame_files(frames: FrameRange) -> list[Path]:
    """Lists the frames of a folder that are used, in time order; raises RawDataError if one is missing."""
    folder = frames.path
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural_key)
    if not names:
        raise bad_clip(folder, "holds no frame", "missing")
    stems, suffixes = zip(*map(os.path.splitext, names), strict=True)
    for name, suffix in zip(names, suffixes, strict=True):
        if suffix.lower() not in FRAME_SUFFIXES:
            raise bad_clip(folder / name, f"is no frame ({', '.join(FRAME_SUFFIXES)})")
    for i in range(1, len(names)):
        if stems[i] == stems[i - 1]:
            what = f"holds two files of one frame, {names[i - 1]} and {names[i]}"
            raise bad_clip(folder, what, "duplicated")
    count = len(names) if frames.count is None else frames.count
    if count > len(names):
        raise bad_clip(folder, f"expected {count} frames, found {len(names)}", "missing")
    numbers = [int(found[-1]) if (found := re.findall("[0-9]+", stem)) else -1 for stem in stems[:count]]
    if (missing := _missing_number(numbers, frames.first)) is not None:
        around = "around it" if frames.first is None else f"from {frames.first}"
        raise bad_clip(folder, f"frame {missing} is missing: frames count by ones {around}", "missing")
    return [folder / name for name in names[:count]]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key of natural numeric order: "frame2" before "frame10"."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _missing_number(numbers: list[int], first: int | None) -> int | None:
    """Returns the first number that is missing, None if none is; without `first` they need not count by ones."""
    if first is not None:
        return next((expected for expected, number in enumerate(numbers, first) if number != expected), None)
    steps = np.diff(numbers)
    gaps = np.flatnonzero(steps > 1)
    if -1 in numbers or len(gaps) == 0 or 2 * len(gaps) > len(steps):
        return None
    return numbers[gaps[0]] + 1


def check_headers(frames: FrameRange) -> int:
    """Checks that every frame file starts as JPEG or PNG, or that a video opens and is long enough by its header.

    Returns the number of frames that are used; 0 where the header of a video does not give it.
    """
    if not is_video(frames.path):
        files = frame_files(frames)
        for file in files:
            with file.open("rb") as stream:
                _check_signature(file, stream.read(8))
        return len(files)
    video = open_video(frames.path)
    if not video.isOpened():
        raise bad_clip(frames.path, "cannot be opened as a video: truncated or damaged")
    announced = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    if announced < 1:
        return frames.count or 0
    if frames.stop is not None and announced < frames.stop:
        raise bad_clip(frames.path, f"expected {frames.stop} frames, found {announced} by its header", "missing")
    return frames.count or announced - (frames.first or 0)


def _check_signature(file: Path, content: bytes) -> None:
    if not content.startswith(_IMAGE_SIGNATURES):
        raise bad_clip(file, "is neither JPEG nor PNG" if content else "is empty")


def clip_kind(frames: FrameRange, modality: str) -> FrameKind:
    """Returns the kind of a clip's frames: of the first one in a folder, of all in a video."""
    if is_video(frames.path):
        coloured = modality == "rgb" or any(colour_spread(frame) > GREY_SPREAD for frame in video_frames(frames))
        return COLOUR if coloured else GREY
    file = frame_files(frames)[0]
    kind = _kind_of(read_frame(file)[1])
    if kind not in _KINDS[modality]:
        expected = " or ".join(map(str, _KINDS[modality]))
        raise bad_clip(file, f"is {kind}; {modality} frames are {expected}")
    return kind


def read_clip(frames: FrameRange, kind: FrameKind) -> list[bytes]:
    """Returns the encoded frames (JPEG or PNG) of a clip; raises RawDataError unless each decodes to `kind`."""
    encoded: list[bytes] = []
    if not is_video(frames.path):
        for file in frame_files(frames):
            content, image = read_frame(file, kind)
            encoded.append(encode_depth(image) if kind == DEPTH_16_BIT else content)
        return encoded
    if kind.dtype != "uint8":
        raise bad_clip(frames.path, f"is a video of 8 bits; the data set's frames are {kind}")
    for number, frame in enumerate(video_frames(frames), frames.first or 0):
        if kind == GREY:
            if colour_spread(frame) > GREY_SPREAD:
                raise bad_clip(frames.path, f"frame {number} is coloured; the data set's are {kind}")
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        encoded.append(encode_jpeg(frame))
    return encoded


def read_frame(file: Path, kind: FrameKind | None = None) -> tuple[bytes, np.ndarray]:
    """Returns a file and its image, h w or h w 3 (BGR); raises RawDataError unless the image is of `kind`."""
    content = file.read_bytes()
    _check_signature(file, content)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise bad_clip(file, f"cannot be decoded: truncated or damaged ({len(content)} bytes)")
    if kind and _kind_of(image) != kind:
        raise bad_clip(file, f"is {_kind_of(image)}; the data set's frames are {kind}")
    return content, image


def _kind_of(image: np.ndarray) -> FrameKind:
    return FrameKind(image.dtype.name, 1 if image.ndim == 2 else image.shape[2])


def video_frames(frames: FrameRange) -> Iterator[np.ndarray]:
    """Yields the frames of a video that are used (h w 3, BGR); raises RawDataError if the video ends too early."""
    capture = open_video(frames.path)
    announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    count = 0
    while count != frames.stop and (read := capture.read())[0]:
        if count >= (frames.first or 0):
            yield read[1]
        count += 1
    if count == 0:
        raise bad_clip(frames.path, "holds no frame that can be decoded")
    if frames.stop is not None and count < frames.stop:
        raise bad_clip(frames.path, f"expected {frames.stop} frames, found {count}", "missing")
    if frames.stop is None and count < announced - _tolerance(announced):
        raise bad_clip(frames.path, f"ends after {count} of {announced:.0f} frames: truncated or damaged")


def open_video(path: Path) -> cv2.VideoCapture:
    """Opens a video without OpenCV's own messages; `isOpened()` of the result is False if that failed."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)


def frame_bounds(video: Path) -> tuple[int, float]:
    """Returns the least and largest number of frames a video may have by its header; 0 and infinity if unknown."""
    announced = open_video(video).get(cv2.CAP_PROP_FRAME_COUNT)
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
