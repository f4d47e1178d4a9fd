"""Checks raw clips, and what was built from them: `python -m rgbd_jax data check rgbd_folder --raw_dir RAW`.

Prints a table of the splits and every problem with its file and line; the exit status is 1 if there is any.
"""

import argparse
import collections
import dataclasses
import sys
from pathlib import Path

import tensorflow_datasets as tfds

from rgbd_jax.data.source import REFERENCE_SHORT, prepared_directory, read_index
from rgbd_jax.ingest.build import builder_class, dataset_names
from rgbd_jax.ingest.builder import RawClipsBuilder, frame_kinds
from rgbd_jax.ingest.clip_files import ClipSpec, check_headers
from rgbd_jax.ingest.discovery import THREADS, RawClips, good_clips
from rgbd_jax.ingest.problems import KINDS, RawDataError
from rgbd_jax.ingest.shards import available_cores, read_example
from rgbd_jax.printable import printable

_SHORT_CLIPS_LISTED = 20


def check_raw(dataset: str, raw_dir: Path, *, decode: bool, workers: int | None = None) -> RawClips:
    """Looks for everything that would stop a build; good clips are returned with their number of frames.

    With `decode`, every frame is decoded as in a build, by `workers` threads (default: one a core); otherwise files are
    listed and their headers read.
    """
    cls = builder_class(dataset)
    if not issubclass(cls, RawClipsBuilder):
        raise ValueError(f"{dataset} is generated: it has no raw clips to check")
    raw = RawClips((), {}, ())
    try:
        raw = cls.find_clips(raw_dir)
        kinds = frame_kinds(raw) if decode else {}
    except RawDataError as error:
        return dataclasses.replace(raw, splits={}, problems=(*raw.problems, *error.problems))

    def check(clip: ClipSpec) -> ClipSpec:
        if decode:
            example = read_example(clip, kinds, cls.read_frames)
            counts = [len(example[modality]) for modality in clip.frames]
        else:
            counts = [check_headers(frames) for frames in clip.frames.values()]
        return dataclasses.replace(clip, frame_count=max(counts))

    problems = list(raw.problems)
    workers = workers or (available_cores() if decode else THREADS)
    good = good_clips(raw.splits, check, problems, workers, f"checking {dataset}")
    return dataclasses.replace(raw, splits=good, problems=problems)


def compare(raw: RawClips, directory: Path) -> tuple[list[str], list[str]]:
    """Returns how good raw clips differ from the index of what was built from them, and notes that explain it."""
    info = tfds.builder_from_directory(directory).info
    differences = []
    if tuple(info.features["label"].names) != raw.class_names:
        differences.append("the classes are others, or have other names")
    for split in dict.fromkeys([*raw.splits, *info.splits]):
        clips, labels = raw.splits.get(split, ()), {}
        if split in info.splits:
            index, records = read_index(directory, split), info.splits[split].num_examples
            labels = {clip.name: clip.label for clip in index}
            if records != len(labels):
                what = f"{records} records, but {len(labels)} clips in its index"
                differences.append(f"{split}: {what}; delete {directory} and build it again")
        if len(clips) != len(labels):
            differences.append(f"{split}: {len(clips)} good raw clips, {len(labels)} prepared")
        for clip in clips:
            label = labels.pop(clip.name, None)
            if label is None:
                differences.append(f"{clip.where}: {clip.name} is not prepared in split {split}")
            elif label != clip.label:
                found = f"label {clip.label} here, {label} where it is prepared"
                differences.append(f"{clip.where}: {clip.name} has {found}")
        differences += [f"{split}: {name} is prepared, but is no good raw clip" for name in labels]
    left_out = (info.metadata or {}).get("left_out", ())
    return differences, [f"{len(left_out)} problems were left out when it was built"] if left_out else []


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
    row = "  ".join(["{:<24}", "{:>10}", "{:>10}", *(f"{{:>{len(column)}}}" for column in columns)]).format
    lines = [row("split", "good clips", "frames", *columns)]
    for split in dict.fromkeys([*raw.splits, *(problem.split for problem in raw.problems)]):
        clips = raw.splits.get(split, ())
        frames = sum(clip.frame_count or 0 for clip in clips)
        lines.append(row(split or "(no split)", len(clips), frames, *(found[split, column] for column in columns)))
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
    parser.add_argument("--data_dir", help="compare with the data set that is prepared there")
    parser.add_argument("--decode", action="store_true", help="decode every frame; otherwise headers alone are read")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one a core)")
    listed = f"list every short clip, not only the first {_SHORT_CLIPS_LISTED}"
    parser.add_argument("--all", action="store_true", help=listed)


def run(args: argparse.Namespace) -> None:
    """Prints what is wrong with raw data; ends the program with status 1 if there is a problem or a difference."""
    raw = check_raw(args.dataset, args.raw_dir.expanduser(), decode=args.decode, workers=args.workers)
    print(*map(printable, report(raw, decoded=args.decode, every_short_clip=args.all)), sep="\n")
    differences: list[str] = []
    if args.data_dir:
        directory = prepared_directory(args.dataset, args.data_dir)
        if directory is None:
            raise FileNotFoundError(f"{args.dataset} is not prepared in {args.data_dir}")
        differences, notes = compare(raw, directory)
        summary = f"{directory}: {len(differences)} differences from the raw data"
        print("", *map(printable, [summary, *differences, *notes]), sep="\n")
    if raw.problems or differences:
        sys.exit(1)
