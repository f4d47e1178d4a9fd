"""Clips as users name them on a command line (videos, folders of frames, lists of these), loaded for a network."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.ingest.clip_files import (
    FRAME_SUFFIXES,
    VIDEO_SUFFIXES,
    FrameRange,
    clip_kind,
    frame_bounds,
    is_video,
    natural_key,
    read_clip,
)
from rgbd_jax.ingest.discovery import check_frame_counts
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.modalities import STREAMS

LIST_SUFFIXES = (".lst", ".txt")
MOST_FRAMES = 20_000  # of one clip; its encoded frames lie in memory together


class ClipError(ValueError):
    """A clip cannot be used; the message names its path."""


@dataclasses.dataclass(frozen=True, eq=False)
class UserClip:
    """A clip by its files.

    Attributes:
        name: what it is called in results: its first path, as given.
        paths: modality -> a folder of frames, or a video.
    """

    name: str
    paths: Mapping[str, Path]


@dataclasses.dataclass(frozen=True)
class LoadedClip:
    """A clip, ready for the network.

    Attributes:
        clip: which one.
        record: its encoded frames, all of them; None with a problem.
        frames: modality -> the frames that the network sees, uint8 t h w 3, with several views v t h w 3; empty with a
            problem.
        problem: why it cannot be used, "" if it can.
    """

    clip: UserClip
    record: ClipRecord | None
    frames: Mapping[str, UInt8[np.ndarray, "*v t h w 3"]]
    problem: str = ""


def find_clips(given: Mapping[str, Sequence[str]], stream: str) -> list[UserClip]:
    """Returns the clips that a user named, those of two modalities paired in order.

    Args:
        given: modality -> paths: videos, folders of frames, folders of such clips, or lists (.txt, a path a line,
            relative to the list's folder).
        stream: the network's stream.

    Raises:
        ClipError: a modality that the network needs, a path or a partner is missing.
    """
    needed = STREAMS[stream]
    missing = [modality for modality in needed if not given.get(modality)]
    if missing:
        raise ClipError(f"the network sees {' and '.join(needed)}: give {' and '.join(f'--{m}=PATH' for m in missing)}")
    paths = {modality: [path for text in given[modality] for path in _clips_at(text)] for modality in needed}
    counts = {modality: len(of_modality) for modality, of_modality in paths.items()}
    if len(set(counts.values())) > 1:
        raise ClipError(f"found {' and '.join(f'{n} {m}' for m, n in counts.items())} clips; expected as many of each")
    pairs = zip(*paths.values(), strict=True)
    return [UserClip(str(pair[0]), dict(zip(needed, pair, strict=True))) for pair in pairs]


def _clips_at(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if not path.exists():
        raise ClipError(f"{text}: no such file or folder")
    if path.is_dir():
        entries = sorted((x for x in path.iterdir() if not x.name.startswith(".")), key=lambda x: natural_key(x.name))
        if not entries:
            raise ClipError(f"{text} is an empty folder; expected frames ({', '.join(FRAME_SUFFIXES)}) or clips")
        clips = [entry for entry in entries if entry.is_dir() or is_video(entry)]
        return clips or [path]
    if path.suffix.lower() in LIST_SUFFIXES:
        return _listed(path)
    return [path]


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8 text; expected a list of clips, a path a line") from error
    listed = []
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        clip = path.parent / Path(entry).expanduser()
        if not clip.exists():
            raise ClipError(f"{path}:{number}: {clip}: no such file or folder")
        listed.append(clip)
    if not listed:
        raise ClipError(f"{path} names no clip; expected a path a line")
    return listed


def read_user_clip(clip: UserClip) -> ClipRecord:
    """Reads all frames of a clip; its label is 0 and means nothing.

    Raises:
        ClipError: a file is of another kind, damaged, empty or too long, or there are more frames of one modality.
    """
    frames = {}
    try:
        for modality, path in clip.paths.items():
            _check_path(path)
            recording = FrameRange(path)
            frames[modality] = read_clip(recording, clip_kind(recording, modality))
        check_frame_counts(clip.name, {modality: len(encoded) for modality, encoded in frames.items()})
    except RawDataError as error:
        raise ClipError("; ".join(map(str, error.problems))) from error
    return ClipRecord(clip.name, 0, frames)


def _check_path(path: Path) -> None:
    if path.is_dir():
        count: float = sum(entry.suffix.lower() in FRAME_SUFFIXES for entry in path.iterdir())
    elif is_video(path):
        if not path.stat().st_size:
            raise ClipError(f"{path} is empty")
        count = frame_bounds(path)[0]
    else:
        raise ClipError(f"{path} is neither a folder of frames nor a video ({', '.join(VIDEO_SUFFIXES)})")
    if count > MOST_FRAMES:
        raise ClipError(
            f"{path} has {count} frames, more than {MOST_FRAMES}: a clip holds one motion; cut it, or use --stream"
        )


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


def batched(clips: Iterator[LoadedClip], size: int) -> Iterator[list[LoadedClip]]:
    """Yields lists of up to `size` clips."""
    while batch := list(itertools.islice(clips, size)):
        yield batch
