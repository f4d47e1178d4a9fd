"""Clips and streams as users name them (videos, folders of frames, lists of these, cameras), read for a model."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import grain
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from rgbd_jax.data import loader
from rgbd_jax.data.frames import encode_jpeg
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.ingest.clip_files import (
    FRAME_SUFFIXES,
    GREY_SPREAD,
    MAX_FRAMES,
    FrameRange,
    clip_kind,
    colour_spread,
    frame_files,
    least_count,
    natural_key,
    read_clip,
    read_frame_file,
)
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.split_lists import read_lines
from rgbd_jax.ingest.videos import STANDARD_INPUT, VIDEO_SUFFIXES, decoded_frames, is_video, open_video

LIST_SUFFIXES = (".lst", ".txt")
CAMERA = "camera:"


@dataclasses.dataclass(frozen=True, eq=False)
class UserClip:
    """A clip by its name in results, and its source by modality: a folder of frames, a video, or the frames."""

    name: str
    sources: Mapping[str, Path | np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoadedClip:
    """A clip, ready for the model: all encoded frames and the sampled ones, or the problem why it cannot be used."""

    clip: UserClip
    record: ClipRecord | None
    frames: Mapping[str, UInt8[np.ndarray, "*v t h w 3"]]
    problem: str = ""


def find_clips(given: Mapping[str, Sequence[str]], modalities: Sequence[str]) -> list[UserClip]:
    """Returns the clips at some paths, the modalities paired in order.

    A path is a video, a folder of frames, a folder of such clips, or a list (.txt, a path a line, relative to it).
    """
    if any(not given.get(modality) for modality in modalities):
        wanted = " and ".join(f"--{modality} PATH" for modality in modalities)
        raise ValueError(f"the model reads {' and '.join(modalities)} clips: give {wanted}")
    return paired({modality: [clip for path in given[modality] for clip in _clips_at(path)] for modality in modalities})


def paired(sources: Mapping[str, Sequence[Path | np.ndarray]]) -> list[UserClip]:
    """Returns clips from the sources of each modality, in order; raises ValueError if one modality has more of them."""
    if len({len(each) for each in sources.values()}) > 1:
        counts = " and ".join(f"{len(each)} {modality}" for modality, each in sources.items())
        raise ValueError(f"found {counts} clips; expected as many of each")
    clips = [dict(zip(sources, clip, strict=True)) for clip in zip(*sources.values(), strict=True)]
    return [UserClip(next((str(x) for x in c.values() if isinstance(x, Path)), "array"), c) for c in clips]


def _clips_at(text: str) -> list[Path]:
    path = _expanded(text)
    if not path.exists():
        raise ValueError(f"{text}: no such file or folder")
    if path.is_dir():
        entries = sorted((x for x in path.iterdir() if not x.name.startswith(".")), key=lambda x: natural_key(x.name))
        if not entries:
            raise ValueError(f"{text} is an empty folder; expected frames ({', '.join(FRAME_SUFFIXES)}) or clips")
        return [entry for entry in entries if entry.is_dir() or is_video(entry)] or [path]
    if path.suffix.lower() not in LIST_SUFFIXES:
        return [path]
    clips = []
    for where, line in read_lines(path):
        if not line.startswith("#"):
            clips.append(path.parent / _expanded(line))
            try:
                clips[-1].stat()
            except (OSError, ValueError) as error:
                raise ValueError(f"{where}: {line!r}: no such file or folder ({error})") from error
    if not clips:
        raise ValueError(f"{path} names no clip; expected a path a line")
    return clips


def _expanded(text: str) -> Path:
    """Returns a path with the home directory in place of "~"; a file may also be named "~clip"."""
    with contextlib.suppress(RuntimeError, ValueError):  # no such user, or no name at all
        return Path(text).expanduser()
    return Path(text)


def read_user_clip(clip: UserClip) -> ClipRecord:
    """Reads all frames of a clip, with a label of 0 that means nothing; ValueError if they cannot be used."""
    frames: dict[str, Sequence[bytes | np.ndarray]] = {}
    for modality, path in clip.sources.items():
        if isinstance(path, np.ndarray):
            frames[modality] = [checked_frame(frame, modality) for frame in path]
            continue
        try:
            frames[modality] = _read_path(path, modality)
        except RawDataError as error:  # its message advises how to build a data set
            raise ValueError("; ".join(map(str, error.problems))) from error
    if len({len(encoded) for encoded in frames.values()}) > 1:
        counts = " and ".join(f"{len(encoded)} {modality}" for modality, encoded in frames.items())
        raise ValueError(f"{clip.name}: found {counts} frames; expected as many of each")
    return ClipRecord(clip.name, 0, frames)


def _read_path(path: Path, modality: str) -> list[bytes]:
    if path.is_dir():
        count = sum(entry.suffix.lower() in FRAME_SUFFIXES for entry in path.iterdir())
    elif not is_video(path):
        raise ValueError(f"{path} is neither a folder of frames nor a video ({', '.join(VIDEO_SUFFIXES)})")
    else:
        count = least_count(path)
    if count > MAX_FRAMES:
        advice = "cut it to one motion, or use `rgbd stream`"
        raise ValueError(f"{path} has {count} frames, more than {MAX_FRAMES}: {advice}")
    return read_clip(FrameRange(path), clip_kind(FrameRange(path), modality))


def checked_frame(frame: np.ndarray, modality: str) -> np.ndarray:
    """Returns a decoded frame as `decode_frame` would, h w 3 or h w; depth may be h w 1. ValueError if it is none."""
    frame = np.asarray(frame)
    if modality == "depth" and frame.shape[2:] == (1,):
        frame = frame[..., 0]
    coloured = frame.dtype == np.uint8 and frame.shape[2:] == (3,)
    grey = modality == "depth" and frame.dtype in (np.uint8, np.uint16) and frame.ndim == 2
    if not (coloured or grey) or not frame.size:
        expected = "uint8 h w 3" + (", or uint8 or uint16 h w" if modality == "depth" else "")
        raise ValueError(f"a {modality} frame is {frame.dtype} of shape {frame.shape}; expected {expected}")
    return frame


def load_clips(clips: Sequence[UserClip], config: ConfigDict) -> Iterator[LoadedClip]:
    """Yields the clips in order, `config.data.workers` of them read ahead; those with a problem too."""

    def load(clip: UserClip) -> LoadedClip:
        try:
            record = read_user_clip(clip)
            return LoadedClip(clip, record, loader.load_clip(record, config))
        except (ValueError, OSError) as error:
            return LoadedClip(clip, None, {}, str(error))

    options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=config.data.workers)
    return iter(grain.MapDataset.source(clips).map(load).to_iter_dataset(options))


def is_live(source: str) -> bool:
    """Returns whether a source is a camera or standard input, which can only be streamed."""
    return source == STANDARD_INPUT or source.startswith(CAMERA)


def encoded_frames(source: str, modality: str) -> Iterator[bytes]:
    """Yields the frames of a source as they come, encoded as those of a clip; a grey depth video is one channel.

    A source is "camera:0", "-" (standard input), a pipe, a video or a folder of frames.
    """
    path = _expanded(source)
    try:
        if path.is_dir():
            yield from map(read_frame_file, frame_files(FrameRange(path)))
            return
        with contextlib.closing(_images(source, path)) as images:
            coloured = modality == "rgb"
            for image in images:
                coloured = coloured or colour_spread(image) > GREY_SPREAD
                yield encode_jpeg(image if coloured else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    except RawDataError as error:
        raise ValueError("; ".join(map(str, error.problems))) from error


def _images(source: str, path: Path) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    if not source.startswith(CAMERA):
        if source != STANDARD_INPUT and not path.exists():
            raise ValueError(f"{source}: no such file, folder or pipe")
        with open_video(path, live=True) as video:
            try:
                yield from decoded_frames(video)
            except ValueError as error:
                raise ValueError(f"{source}: a frame {error}") from error
        return
    number = source.removeprefix(CAMERA)
    if not number.isdigit():
        raise ValueError(f"{source}: expected a number after {CAMERA!r}, such as {CAMERA}0")
    capture = cv2.VideoCapture(int(number))
    try:
        if not capture.isOpened():
            raise ValueError(f"{source} cannot be opened: expected the number of a camera that is free")
        while (read := capture.read())[0]:
            yield read[1]
    finally:
        capture.release()
