"""Clips as users have them on disk: folders of frames and videos, read into encoded frames.

JPEG and 8-bit PNG frames are kept byte for byte; 16-bit depth becomes PNG that is decoded faster, and the frames of a
video JPEG of quality 95. Every frame is decoded once: nothing else shows that it can be.
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from rgbd_jax.data.frames import check_header, decode_image, encode_depth, encode_jpeg, image_size
from rgbd_jax.ingest.matrices import is_matrix, matrix_frame_count, read_matrix
from rgbd_jax.ingest.problems import bad_clip
from rgbd_jax.ingest.videos import VIDEO_SUFFIXES, announced_frames, decoded_frames, is_video, open_video
from rgbd_jax.regular_files import check_regular, read_file

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
# Of a clip, whose encoded frames lie in memory, and in a record, together; of the file of a frame.
MAX_FRAMES, MAX_CLIP_BYTES, MAX_FRAME_BYTES = 20_000, (1 << 31) - 1, 1 << 28

_HEAD = 1 << 12  # bytes of a frame that nearly always hold its header
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# Colour maps spread the channels by 30 and more; compressing grey frames as a video spreads them by up to 3.
GREY_SPREAD = 8.0


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

    path: Path  # folder of frames, video, or MATLAB file
    first: int | None = None  # number of the first frame that is used; None: 0 in a file, any in a folder
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
    for name in names:
        if os.path.splitext(name)[1].lower() not in FRAME_SUFFIXES:
            raise bad_clip(folder / name, f"is no frame ({', '.join(FRAME_SUFFIXES)})")
    for before, after in itertools.pairwise(names):
        if os.path.splitext(before)[0] == os.path.splitext(after)[0]:
            raise bad_clip(folder, f"holds two files of one frame, {before} and {after}", "duplicated")
    count = len(names) if frames.count is None else frames.count
    if count > len(names):
        raise bad_clip(folder, f"expected {count} frames, found {len(names)}", "missing")
    numbers = [int(found[-1]) if (found := re.findall("[0-9]+", name)) else -1 for name in names[:count]]
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
    gaps = [before for before, after in itertools.pairwise(numbers) if after - before > 1]
    if -1 in numbers or not gaps or 2 * len(gaps) > len(numbers) - 1:
        return None
    return gaps[0] + 1


def check_headers(frames: FrameRange) -> int:
    """Checks that every frame file starts as JPEG or PNG, or that a video opens and is long enough by its header.

    Returns the number of frames that are used; 0 where the header of a video does not give it.
    """
    if not (is_matrix(frames.path) or is_video(frames.path)):
        files = frame_files(frames)
        for file in files:
            check_regular(file, bad_clip)
            with file.open("rb") as stream:
                head = stream.read(_HEAD)
                _check_header(file, head if image_size(head) else head + stream.read(MAX_FRAME_BYTES))
        return len(files)
    announced = announced_count(frames.path)
    if 0 < announced < (frames.stop or 0):
        raise bad_clip(frames.path, f"expected {frames.stop} frames, found {announced} by its header", "missing")
    return frames.count or max(announced - (frames.first or 0), 0)


def announced_count(path: Path) -> int:
    """Returns how many frames a video or MATLAB file has by its header; 0 if a video does not say so."""
    if is_matrix(path):
        return matrix_frame_count(path)
    with open_video(path) as video:
        return announced_frames(video)


def _check_header(file: Path, content: bytes) -> None:
    if not content.startswith(_IMAGE_SIGNATURES):
        raise bad_clip(file, "is neither JPEG nor PNG" if content else "is empty")
    try:
        check_header(content)
    except ValueError as error:
        raise bad_clip(file, str(error)) from error


def clip_kind(frames: FrameRange, modality: str) -> FrameKind:
    """Returns the kind of a clip's frames: of the first one in a folder, of all in a video."""
    if is_matrix(frames.path):
        return DEPTH_16_BIT
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
    size = 0
    for content in _encoded(frames, kind):
        encoded.append(content)
        size += len(content)
        if len(encoded) > MAX_FRAMES or size > MAX_CLIP_BYTES:
            most = f"{MAX_FRAMES:,} frames, or {MAX_CLIP_BYTES:,} bytes of them"
            raise bad_clip(frames.path, f"has more than {most}: cut it to one motion")
    return encoded


def _encoded(frames: FrameRange, kind: FrameKind) -> Iterator[bytes]:
    if is_matrix(frames.path):
        if kind != DEPTH_16_BIT:
            raise bad_clip(frames.path, f"is {DEPTH_16_BIT}; the data set's frames are {kind}")
        yield from map(encode_depth, read_matrix(frames.path)[frames.first or 0 : frames.stop])
        return
    if not is_video(frames.path):
        for file in frame_files(frames):
            content, image = read_frame(file, kind)
            yield encode_depth(image) if kind == DEPTH_16_BIT else content
        return
    if kind.dtype != "uint8":
        raise bad_clip(frames.path, f"is a video of 8 bits; the data set's frames are {kind}")
    for number, frame in enumerate(video_frames(frames), frames.first or 0):
        if kind == GREY:
            if colour_spread(frame) > GREY_SPREAD:
                raise bad_clip(frames.path, f"frame {number} is coloured; the data set's are {kind}")
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        yield encode_jpeg(frame)


def read_frame_file(file: Path) -> bytes:
    """Returns what a file holds; raises RawDataError unless it starts as JPEG or PNG of a size that is read."""
    content = read_file(file, MAX_FRAME_BYTES, bad_clip)
    _check_header(file, content)
    return content


def read_frame(file: Path, kind: FrameKind | None = None) -> tuple[bytes, np.ndarray]:
    """Returns a file and its image, h w or h w 3 (BGR); raises RawDataError unless the image is of `kind`."""
    content = read_frame_file(file)
    try:
        image = decode_image(content)
    except ValueError as error:
        raise bad_clip(file, str(error)) from error
    if kind and _kind_of(image) != kind:
        raise bad_clip(file, f"is {_kind_of(image)}; the data set's frames are {kind}")
    return content, image


def _kind_of(image: np.ndarray) -> FrameKind:
    return FrameKind(image.dtype.name, 1 if image.ndim == 2 else image.shape[2])


def video_frames(frames: FrameRange) -> Iterator[np.ndarray]:
    """Yields the frames of a video that are used (h w 3, BGR); raises RawDataError if the video ends too early."""
    count, damage = 0, ""
    with open_video(frames.path) as video:
        announced = announced_frames(video)
        try:
            for count, frame in enumerate(itertools.islice(decoded_frames(video), frames.stop), 1):
                if count > (frames.first or 0):
                    yield frame
        except ValueError as error:
            damage = f"frame {count} {error}"
    if count == 0:
        raise bad_clip(frames.path, damage or "holds no frame that can be decoded")
    if frames.stop is not None and count < frames.stop:
        found = f"{count}; {damage}" if damage else count
        raise bad_clip(frames.path, f"expected {frames.stop} frames, found {found}", "missing")
    if frames.stop is None and count < _least(announced):
        raise bad_clip(frames.path, f"ends after {count} of {announced} frames: {damage or 'truncated or damaged'}")
    if damage and not announced:
        raise bad_clip(frames.path, damage)


def least_count(video: Path) -> int:
    """Returns the least number of frames that a video may have by its header; 0 if it does not say so."""
    return _least(announced_count(video))


def _least(announced: int) -> int:
    """Returns how many frames there must be: containers without an index only estimate their number."""
    return max(0, math.ceil(announced - max(1.0, 0.05 * announced)))


def colour_spread(frame: np.ndarray) -> float:
    """Returns how far the channels of a frame (h w c) lie apart, on average over its pixels."""
    blue, green, red = cv2.split(frame)
    highest, lowest = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return float(cv2.mean(cv2.subtract(highest, lowest))[0])
