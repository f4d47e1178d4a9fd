"""Checks raw clips before they are built, and what was built against them."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow_datasets as tfds

from rgbd_jax.data.source import PreparedSplit
from rgbd_jax.data.splits import REFERENCE_SHORT
from rgbd_jax.ingest.build import builder_class_of
from rgbd_jax.ingest.clip_files import FrameKind
from rgbd_jax.ingest.discovery import RawClip, RawClips
from rgbd_jax.ingest.headers import check_headers
from rgbd_jax.ingest.problems import Problem, RawDataError, in_split
from rgbd_jax.ingest.raw_clips import RawClipsBuilder, frame_kinds, notes_on_splits
from rgbd_jax.ingest.runners import available_cores, run_jobs
from rgbd_jax.ingest.shards import ReadFrames, read_example

_THREADS = 16  # they wait for the file system
_CLIPS_A_JOB = 16


@dataclasses.dataclass(frozen=True)
class RawCheck:
    """What was found in raw data.

    Attributes:
        class_names: the classes, by label.
        good: split to its clips without a problem.
        frames: split to the number of frames of these, of one modality.
        problems: what is wrong with other clips, or with all of the raw data.
        short: split to what is said about its short clips.
        notes: what else is worth knowing and no fault.
    """

    class_names: Sequence[str]
    good: Mapping[str, Sequence[RawClip]]
    frames: Mapping[str, int]
    problems: Sequence[Problem]
    short: Mapping[str, Sequence[str]]
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _DecodeJob:
    place: int
    clips: Sequence[RawClip]
    kinds: Mapping[str, FrameKind]
    read_frames: ReadFrames


def raw_builder_class(dataset: str) -> type[RawClipsBuilder]:
    """Returns the class that builds a data set from raw clips.

    Raises:
        ValueError: there is no such data set, or it is generated.
    """
    builder_class = builder_class_of(dataset)
    if not issubclass(builder_class, RawClipsBuilder):
        raise ValueError(f"{dataset} is generated: it has no raw clips to check")
    return builder_class


def check_raw(
    dataset: str,
    raw_dir: Path,
    *,
    decode: bool,
    workers: int | None = None,
    on_clips: Callable[[int, int], None] = lambda clips, total: None,
) -> RawCheck:
    """Looks for everything that would stop a build.

    Args:
        dataset: name of the data set.
        raw_dir: where the raw clips lie.
        decode: decode every frame as a build does; otherwise files are listed and their headers read.
        workers: processes that decode; None for one a core.
        on_clips: called with the number of clips done since the last call, and the number of all clips.

    Raises:
        ValueError: there is no such data set, or it is generated.
        FileNotFoundError: there are no raw clips.
    """
    builder_class = raw_builder_class(dataset)
    try:
        raw: RawClips = builder_class.find_clips(raw_dir)
    except RawDataError as error:
        return RawCheck((), {}, {}, error.problems, {}, ())
    clips = [(split, clip) for split, each in raw.splits.items() for clip in each]

    def count_clips(done: int) -> None:
        on_clips(done, len(clips))

    problems = list(raw.problems)
    results: Iterable[int | Sequence[Problem]]
    if decode:
        try:
            results = _decode(clips, frame_kinds(raw), builder_class.read_frames, workers, count_clips)
        except RawDataError as error:
            return RawCheck(raw.class_names, {}, {}, [*problems, *error.problems], {}, ())
    else:
        results = _look_at_headers(clips, count_clips)
    good: dict[str, list[RawClip]] = {split: [] for split in raw.splits}
    frames = dict.fromkeys(raw.splits, 0)
    short: dict[str, list[str]] = {split: [] for split in raw.splits}
    for (split, clip), result in zip(clips, results, strict=True):
        if not isinstance(result, int):
            problems += in_split(split, result)
            continue
        good[split].append(clip)
        frames[split] += result
        if 0 < result <= REFERENCE_SHORT:
            short[split].append(f"{clip.where}: {clip.name} has {result} frames only")
    return RawCheck(raw.class_names, good, frames, problems, short, notes_on_splits(raw))


def _look_at_headers(
    clips: Sequence[tuple[str, RawClip]], on_clips: Callable[[int], None]
) -> Iterator[int | Sequence[Problem]]:
    """Yields for every clip its number of frames or what is wrong with it."""

    def look(split_and_clip: tuple[str, RawClip]) -> int | Sequence[Problem]:
        clip = split_and_clip[1]
        counts = [0]
        problems: list[Problem] = []
        for recording in clip.recordings.values():
            try:
                counts.append(check_headers(recording))
            except RawDataError as error:
                problems += error.problems
            except OSError as error:
                problems.append(Problem(clip.where, f"cannot be read: {error}"))
        return problems or max(counts)

    with ThreadPoolExecutor(_THREADS) as threads:
        for result in threads.map(look, clips):
            yield result
            on_clips(1)


def _decode(
    clips: Sequence[tuple[str, RawClip]],
    kinds: Mapping[str, FrameKind],
    read_frames: ReadFrames,
    workers: int | None,
    on_clips: Callable[[int], None],
) -> list[int | Sequence[Problem]]:
    """Returns for every clip its number of frames or what is wrong with it."""
    jobs = [
        _DecodeJob(place, [clip for _, clip in clips[place : place + _CLIPS_A_JOB]], kinds, read_frames)
        for place in range(0, len(clips), _CLIPS_A_JOB)
    ]
    results: dict[int, list[int | Sequence[Problem]]] = {}
    for job, found in run_jobs(_decode_clips, jobs, workers, on_clips):
        results[job.place] = found
    return [result for place in sorted(results) for result in results[place]]


def _decode_clips(job: _DecodeJob, after_clip: Callable[[], None]) -> list[int | Sequence[Problem]]:
    results: list[int | Sequence[Problem]] = []
    for clip in job.clips:
        example = read_example(clip, job.kinds, job.read_frames)
        if isinstance(example, dict):
            results.append(max(len(example[modality]) for modality in clip.recordings))
        else:
            results.append(example)
        after_clip()
    return results


def compare(check: RawCheck, directory: Path) -> tuple[list[str], list[str]]:
    """Compares raw data with what was built from it: every record is read.

    Args:
        check: what was found in the raw data.
        directory: the prepared data set.

    Returns:
        The differences, and what explains some of them.
    """
    info = tfds.builder_from_directory(directory).info
    left_out = {name for names in (info.metadata or {}).get("unreadable_clips", {}).values() for name in names}
    prepared = {split: _names_and_labels(PreparedSplit(directory, split)) for split in info.splits}
    raw = {split: {clip.name: clip for clip in clips} for split, clips in check.good.items()}
    differences = []
    if tuple(info.features["label"].names) != tuple(check.class_names):
        differences.append("the classes are others, or have other names")
    for split in dict.fromkeys([*raw, *prepared]):
        differences += _differences(split, raw.get(split, {}), prepared.get(split, []), check.class_names)
    known = sum(name in left_out for clips in raw.values() for name in clips)
    notes = [f"{known} clips that are not prepared were unreadable when it was built"] if known else []
    return differences, notes


def _names_and_labels(split: PreparedSplit) -> list[tuple[str, int]]:
    def read(index: int) -> tuple[str, int]:
        clip = split[index]
        return clip.name, clip.label

    with ThreadPoolExecutor(available_cores()) as threads:
        return list(threads.map(read, range(len(split))))


def _differences(
    split: str, raw: Mapping[str, RawClip], prepared: Sequence[tuple[str, int]], class_names: Sequence[str]
) -> list[str]:
    differences = []
    if len(raw) != len(prepared):
        differences.append(f"{split}: {len(raw)} good raw clips, {len(prepared)} prepared")
    raw_counts = collections.Counter(clip.label for clip in raw.values())
    prepared_counts = collections.Counter(label for _, label in prepared)
    for label in sorted(raw_counts | prepared_counts):
        if raw_counts[label] != prepared_counts[label]:
            name = class_names[label] if label < len(class_names) else "unknown"
            counts = f"{raw_counts[label]} good raw clips, {prepared_counts[label]} prepared"
            differences.append(f"{split}, class {label} ({name}): {counts}")
    labels = dict(prepared)
    for name, clip in raw.items():
        if name not in labels:
            differences.append(f"{clip.where}: {name} is not prepared in split {split}")
        elif labels[name] != clip.label:
            differences.append(f"{clip.where}: {name} has label {clip.label} here, {labels[name]} where it is prepared")
    differences += [f"{split}: {name} is prepared, but is no good raw clip" for name in labels if name not in raw]
    return differences
