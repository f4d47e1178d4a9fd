"""Clips and streams as users name them (videos, folders of frames, lists of these, cameras), read for a model."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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
    VIDEO_SUFFIXES,
    FrameRange,
    clip_kind,
    colour_spread,
    frame_bounds,
    frame_files,
    is_video,
    natural_key,
    open_video,
    read_clip,
)
from rgbd_jax.ingest.problems import RawDataError

LIST_SUFFIXES = (".lst", ".txt")
CAMERA, STANDARD_INPUT = "camera:", "-"
MAX_FRAMES = 20_000  # of a clip, whose encoded frames lie in memory together


@dataclasses.dataclass(frozen=True, eq=False)
class UserClip:
    """A clip by its name in results and its paths: modality -> a folder of frames, or a video."""

    name: str
    paths: Mapping[str, Path]


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

    Raises:
        ValueError: a modality, a path or a partner is missing; names it.
    """
    if any(not given.get(modality) for modality in modalities):
        wanted = " and ".join(f"--{modality} PATH" for modality in modalities)
        raise ValueError(f"the model reads {' and '.join(modalities)} clips: give {wanted}")
    found = {modality: [clip for path in given[modality] for clip in _clips_at(path)] for modality in modalities}
    if len({len(clips) for clips in found.values()}) > 1:
        counts = " and ".join(f"{len(clips)} {modality}" for modality, clips in found.items())
        raise ValueError(f"found {counts} clips; expected as many of each")
    pairs = zip(*found.values(), strict=True)
    return [UserClip(str(paths[0]), dict(zip(modalities, paths, strict=True))) for paths in pairs]


def _clips_at(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(f"{text}: no such file or folder")
    if path.is_dir():
        entries = sorted((x for x in path.iterdir() if not x.name.startswith(".")), key=lambda x: natural_key(x.name))
        if not entries:
            raise ValueError(f"{text} is an empty folder; expected frames ({', '.join(FRAME_SUFFIXES)}) or clips")
        return [entry for entry in entries if entry.is_dir() or is_video(entry)] or [path]
    if path.suffix.lower() not in LIST_SUFFIXES:
        return [path]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; expected a list of clips, a path a line") from error
    clips = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            clips.append(path.parent / Path(line).expanduser())
            if not clips[-1].exists():
                raise ValueError(f"{path}:{number}: {clips[-1]}: no such file or folder")
    if not clips:
        raise ValueError(f"{path} names no clip; expected a path a line")
    return clips


def read_user_clip(clip: UserClip) -> ClipRecord:
    """Reads all frames of a clip; the label of the record is 0 and means nothing.

    Raises:
        ValueError: a file is of another kind, damaged, empty or too long, or the modalities differ in length.
    """
    frames = {}
    for modality, path in clip.paths.items():
        if path.is_dir():
            count = sum(entry.suffix.lower() in FRAME_SUFFIXES for entry in path.iterdir())
        elif not is_video(path):
            raise ValueError(f"{path} is neither a folder of frames nor a video ({', '.join(VIDEO_SUFFIXES)})")
        elif not path.stat().st_size:
            raise ValueError(f"{path} is empty")
        else:
            count, _ = frame_bounds(path)
        if count > MAX_FRAMES:
            advice = "cut it to one motion, or use --stream"
            raise ValueError(f"{path} has {count} frames, more than {MAX_FRAMES}: {advice}")
        try:
            frames[modality] = read_clip(FrameRange(path), clip_kind(FrameRange(path), modality))
        except RawDataError as error:  # its message advises how to build a data set
            raise ValueError("; ".join(map(str, error.problems))) from error
    if len({len(encoded) for encoded in frames.values()}) > 1:
        counts = " and ".join(f"{len(encoded)} {modality}" for modality, encoded in frames.items())
        raise ValueError(f"{clip.name}: found {counts} frames; expected as many of each")
    return ClipRecord(clip.name, 0, frames)


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

    Raises:
        ValueError: the source cannot be opened.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        try:
            files = frame_files(FrameRange(path))
        except RawDataError as error:
            raise ValueError("; ".join(map(str, error.problems))) from error
        yield from (file.read_bytes() for file in files)
        return
    if source.startswith(CAMERA):
        number = source.removeprefix(CAMERA)
        if not number.isdigit():
            raise ValueError(f"{source}: expected a number after {CAMERA!r}, such as {CAMERA}0")
        capture = cv2.VideoCapture(int(number))
    else:
        if source != STANDARD_INPUT and not path.exists():
            raise ValueError(f"{source}: no such file, folder or pipe")
        capture = open_video(Path("pipe:0") if source == STANDARD_INPUT else path)
    try:
        if not capture.isOpened():
            raise ValueError(f"{source} cannot be opened: expected a camera, a pipe or file with video, or frames")
        coloured = modality == "rgb"
        while (read := capture.read())[0]:
            frame = read[1]  # h w 3, BGR
            coloured = coloured or colour_spread(frame) > GREY_SPREAD
            yield encode_jpeg(frame if coloured else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    finally:
        capture.release()
