"""The clips of a raw data set: found on disk and checked without decoding a frame."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rgbd_jax.ingest.clip_files import ClipSpec, FrameRange, find_clip, frame_files
from rgbd_jax.ingest.problems import Problem, RawDataError, bad_clip, clip_problems
from rgbd_jax.ingest.videos import is_video
from rgbd_jax.printable import is_utf8

THREADS = 16  # they wait for the file system

Locate = Callable[[ClipSpec], Mapping[str, FrameRange]]
"""Gives the frames of a clip by modality; raises RawDataError where they are not on disk."""


@dataclasses.dataclass(frozen=True)
class RawClips:
    """The clips of a raw data set."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[ClipSpec]]  # good clips
    problems: Sequence[Problem]  # what is wrong with the others
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # kept with the prepared data set

    def notes(self) -> list[str]:
        """Returns what is odd but no fault: clips in two splits, classes without a training clip."""
        notes = []
        split_of: dict[str, str] = {}
        for split, clips in self.splits.items():
            if shared := [clip for clip in clips if clip.name in split_of]:
                first = f"{split_of[shared[0].name]} too, the first is {shared[0].where}"
                notes.append(f"{len(shared)} clips of split {split} are in split {first}")
            split_of.update((clip.name, split) for clip in clips)
        untrained = set(range(len(self.class_names))) - {clip.label for clip in self.splits.get("train", ())}
        if "train" in self.splits and untrained:
            notes.append(f"{len(untrained)} of {len(self.class_names)} classes have no training clip")
        return notes


def check_folder(folder: Path, expected: str) -> None:
    """Raises FileNotFoundError that names what was expected in a folder that does not exist."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {expected} in it")


def locator(
    roots: Mapping[str, Path],
    first: int | None = None,
    path_of: Callable[[str, str], str] = lambda name, modality: name,
) -> Locate:
    """Returns a `Locate` for clips that are a folder of frames or a video each, `roots[modality] / path_of(...)`.

    Frames in folders are numbered from `first`; if None, they need not be.
    """

    def locate(clip: ClipSpec) -> Mapping[str, FrameRange]:
        expected = {modality: root / path_of(clip.name, modality) for modality, root in roots.items()}
        paths = complete(clip, {modality: find_clip(path) for modality, path in expected.items()}, expected)
        return {m: FrameRange(path, None if is_video(path) else first, clip.frame_count) for m, path in paths.items()}

    return locate


def complete(clip: ClipSpec, found: Mapping[str, Path | None], expected: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the folder or video of each modality of a clip; raises RawDataError if one is not `found`."""
    paths = {modality: path for modality, path in found.items() if path is not None}
    if missing := " or ".join(str(expected[modality]) for modality in found if modality not in paths):
        only = f"; it is in {' and '.join(paths)} only" if paths else ""
        raise bad_clip(clip.where, f"there is no clip {missing}{only}", "unpaired" if paths else "missing")
    return paths


def good_clips(
    splits: Mapping[str, Sequence[ClipSpec]],
    check: Callable[[ClipSpec], ClipSpec],
    problems: list[Problem],
    threads: int = THREADS,
    progress: str | None = None,
) -> dict[str, list[ClipSpec]]:
    """Checks clips, many at a time, and returns by split, in order, what `check` makes of the good ones.

    What is wrong with the others is added to `problems`. `progress` is the label of a progress bar.
    """

    def result(split: str, clip: ClipSpec) -> ClipSpec | list[Problem]:
        try:
            return check(clip)
        except (RawDataError, OSError) as error:
            return clip_problems(error, clip.where, split)

    good: dict[str, list[ClipSpec]] = {split: [] for split in splits}
    names = [split for split, clips in splits.items() for _ in clips]
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(result, names, (clip for clips in splits.values() for clip in clips))
        bar = tqdm(results, progress, len(names), unit="clip", disable=None if progress else True)
        for split, found in zip(names, bar, strict=True):
            if isinstance(found, ClipSpec):
                good[split].append(found)
            else:
                problems += found
    return good


def check_clips(
    splits: Mapping[str, Sequence[ClipSpec]], locate: Locate, problems: list[Problem]
) -> dict[str, list[ClipSpec]]:
    """Finds clips on disk and counts their frames, as `good_clips`; whole videos are counted when they are read."""

    def check(clip: ClipSpec) -> ClipSpec:
        if not is_utf8(clip.name):  # the prepared data set stores the name
            raise bad_clip(clip.where, "has a name that is not UTF-8: rename it")
        frames = locate(clip)
        counts = {m: len(frame_files(each)) if each.path.is_dir() else each.count for m, each in frames.items()}
        check_frame_counts(clip.where, {modality: count for modality, count in counts.items() if count is not None})
        return dataclasses.replace(clip, frames=frames)

    return good_clips(splits, check, problems)


def check_frame_counts(where: str, counts: Mapping[str, int]) -> None:
    """Raises RawDataError unless a clip has as many frames in one modality as in the other."""
    if len(set(counts.values())) > 1:
        numbers = " and ".join(f"{count} {modality}" for modality, count in counts.items())
        raise bad_clip(where, f"expected as many depth frames as rgb frames, found {numbers} frames", "unpaired")
