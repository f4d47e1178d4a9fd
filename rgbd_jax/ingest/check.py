"""Checks raw clips, and what was built from them: `python -m rgbd_jax data check rgbd_folder --raw_dir RAW`.

Prints a table of the splits and every problem with its file and line; the exit status is 1 if there is any.
"""

import argparse
import collections
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow_datasets as tfds
from tqdm import tqdm

from rgbd_jax.data.source import REFERENCE_SHORT, prepared_directory, read_index
from rgbd_jax.ingest.build import builder_class, dataset_names
from rgbd_jax.ingest.builder import RawClipsBuilder, frame_kinds
from rgbd_jax.ingest.clip_files import ClipSpec, FrameKind, check_headers
from rgbd_jax.ingest.discovery import THREADS, RawClips
from rgbd_jax.ingest.problems import KINDS, Problem, RawDataError, in_split
from rgbd_jax.ingest.shard_build import available_cores
from rgbd_jax.ingest.shards import ReadFrames, read_example

_SHORT_CLIPS_LISTED = 20


def check_raw(dataset: str, raw_dir: Path, *, decode: bool, workers: int | None = None) -> RawClips:
    """Looks for everything that would stop a build; good clips are returned with their number of frames.

    With `decode`, every frame is decoded as in a build, by `workers` threads (default: one a core); otherwise files are
    listed and their headers read.

    Raises:
        ValueError: there is no such data set, or it is generated.
        FileNotFoundError: there are no raw clips.
    """
    cls = builder_class(dataset)
    if not issubclass(cls, RawClipsBuilder):
        raise ValueError(f"{dataset} is generated: it has no raw clips to check")
    raw = RawClips((), (), {}, ())
    try:
        raw = cls.find_clips(raw_dir)
        check: Callable[[ClipSpec], int | Sequence[Problem]] = _check_headers
        if decode:
            check = functools.partial(_decode, kinds=frame_kinds(raw), read_frames=cls.read_frames)
    except RawDataError as error:
        return RawClips((), raw.class_names, {}, (*raw.problems, *error.problems))
    good: dict[str, list[ClipSpec]] = {split: [] for split in raw.splits}
    problems = list(raw.problems)
    clips = [(split, clip) for split, each in raw.splits.items() for clip in each]
    with ThreadPoolExecutor(workers or (available_cores() if decode else THREADS)) as threads:
        results = threads.map(check, [clip for _, clip in clips])
        progress = tqdm(results, desc=f"checking {dataset}", total=len(clips), unit="clip", disable=None)
        for (split, clip), result in zip(clips, progress, strict=True):
            if isinstance(result, int):
                good[split].append(dataclasses.replace(clip, frame_count=result))
            else:
                problems += in_split(split, result)
    return RawClips(raw.modalities, raw.class_names, good, problems, raw.metadata)


def _check_headers(clip: ClipSpec) -> int | Sequence[Problem]:
    """Returns the number of frames of a clip by its headers, or what is wrong with it."""
    count = 0
    problems: list[Problem] = []
    for frames in clip.frames.values():
        try:
            count = max(count, check_headers(frames))
        except RawDataError as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(clip.where, f"cannot be read: {error}"))
    return problems or count


def _decode(clip: ClipSpec, kinds: Mapping[str, FrameKind], read_frames: ReadFrames) -> int | Sequence[Problem]:
    """Returns the number of frames of a clip when decoded, or what is wrong with it."""
    try:
        return len(read_example(clip, kinds, read_frames)[next(iter(clip.frames))])
    except RawDataError as error:
        return error.problems


def compare(raw: RawClips, directory: Path) -> tuple[list[str], list[str]]:
    """Returns how good raw clips differ from the index of what was built from them, and notes that explain it."""
    info = tfds.builder_from_directory(directory).info
    differences = []
    if tuple(info.features["label"].names) != raw.class_names:
        differences.append("the classes are others, or have other names")
    prepared: dict[str, dict[str, int]] = {}  # split to name to label
    for split in info.splits:
        index = read_index(directory, split)
        prepared[split] = {clip.name: clip.label for clip in index}
        if info.splits[split].num_examples != len(index):
            what = f"{info.splits[split].num_examples} records, but {len(index)} clips in its index"
            differences.append(f"{split}: {what}; delete {directory} and build it again")
    for split in dict.fromkeys([*raw.splits, *prepared]):
        clips, labels = raw.splits.get(split, ()), prepared.get(split, {})
        if len(clips) != len(labels):
            differences.append(f"{split}: {len(clips)} good raw clips, {len(labels)} prepared")
        here, there = collections.Counter(clip.label for clip in clips), collections.Counter(labels.values())
        for label in sorted(here | there):
            if here[label] != there[label]:
                name = raw.class_names[label] if label < len(raw.class_names) else "unknown"
                counts = f"{here[label]} good raw clips, {there[label]} prepared"
                differences.append(f"{split}, class {label} ({name}): {counts}")
        for clip in clips:
            if clip.name not in labels:
                differences.append(f"{clip.where}: {clip.name} is not prepared in split {split}")
            elif labels[clip.name] != clip.label:
                found = f"label {clip.label} here, {labels[clip.name]} where it is prepared"
                differences.append(f"{clip.where}: {clip.name} has {found}")
        gone = labels.keys() - {clip.name for clip in clips}
        differences += [f"{split}: {name} is prepared, but is no good raw clip" for name in labels if name in gone]
    unreadable = set((info.metadata or {}).get("unreadable_clips", ()))
    known = sum(clip.name in unreadable for clips in raw.splits.values() for clip in clips)
    return differences, [f"{known} clips that are not prepared were unreadable when it was built"] if known else []


def report(raw: RawClips, *, decoded: bool, every_short_clip: bool) -> list[str]:
    """Returns what was found in raw data as lines: a table of the splits, the problems, the notes."""
    short = [
        (split, f"{clip.where}: {clip.name} has {clip.frame_count} frames only")
        for split, clips in raw.splits.items()
        for clip in clips
        if 0 < (clip.frame_count or 0) <= REFERENCE_SHORT
    ]
    found = collections.Counter((problem.split, str(problem.kind)) for problem in raw.problems)
    found.update((split, "too short") for split, _ in short)
    columns = (*KINDS, "too short")
    lines = ["  ".join([f"{'split':<24}", "good clips", f"{'frames':>10}", *columns])]
    for split in dict.fromkeys([*raw.splits, *(problem.split for problem in raw.problems)]):
        clips = raw.splits.get(split, ())
        frames = sum(clip.frame_count or 0 for clip in clips)
        counts = [f"{found[split, column]:>{len(column)}}" for column in columns]
        lines.append("  ".join([f"{split or '(no split)':<24}", f"{len(clips):>10}", f"{frames:>10}", *counts]))
    how = "every frame was decoded" if decoded else "no frame was decoded (--decode does)"
    lines += ["", f"{len(raw.problems)} problems; {how}"]
    lines += [f"  {problem.kind}: {problem}" for problem in raw.problems]
    if short or raw.notes():
        listed = short if every_short_clip else short[:_SHORT_CLIPS_LISTED]
        lines += ["", f"Notes, no faults (clips of at most {REFERENCE_SHORT} frames are short)"]
        lines += [f"  {note}" for note in [*raw.notes(), *(note for _, note in listed)]]
        if len(short) > len(listed):
            lines.append(f"  and {len(short) - len(listed)} more short clips (--all lists them)")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `data check`."""
    parser.add_argument("dataset", choices=dataset_names())
    parser.add_argument("--raw_dir", type=Path, required=True, help="where the raw clips lie")
    parser.add_argument("--data_dir", type=Path, help="compare with the data set that is prepared there")
    parser.add_argument("--decode", action="store_true", help="decode every frame; otherwise headers alone are read")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one a core)")
    listed = f"list every short clip, not only the first {_SHORT_CLIPS_LISTED}"
    parser.add_argument("--all", action="store_true", help=listed)


def run(args: argparse.Namespace) -> None:
    """Prints what is wrong with raw data; ends the program with status 1 if there is a problem or a difference."""
    raw = check_raw(args.dataset, args.raw_dir.expanduser(), decode=args.decode, workers=args.workers)
    print("\n".join(report(raw, decoded=args.decode, every_short_clip=args.all)))
    differences: list[str] = []
    if args.data_dir:
        directory = prepared_directory(args.dataset, args.data_dir)
        if directory is None:
            raise FileNotFoundError(f"{args.dataset} is not prepared in {args.data_dir}")
        differences, notes = compare(raw, directory)
        print("\n".join([f"\n{directory}: {len(differences)} differences from the raw data", *differences, *notes]))
    if raw.problems or differences:
        sys.exit(1)
