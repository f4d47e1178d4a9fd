"""The clips of a raw data set: found from split lists or class folders, and checked without decoding a frame.

Raw data lies in `RAW/rgb` and `RAW/depth`, or in one of them. A clip has the same path in both and is a folder of
frames or a video.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rgbd_jax.ingest.clip_files import (
    VIDEO_SUFFIXES,
    Recording,
    clip_name,
    find_clip,
    frame_files,
    is_video,
    natural_key,
)
from rgbd_jax.ingest.problems import Kind, Problem, RawDataError, in_split
from rgbd_jax.ingest.splits import SPLIT_ALIASES, SplitLine, find_split_folders, find_split_lists, read_split_list
from rgbd_jax.modalities import MODALITIES

_THREADS = 16  # they wait for the file system


@dataclasses.dataclass(frozen=True)
class RawClip:
    """One clip on disk.

    Attributes:
        name: path of the clip in the folder of a modality, unique in its split.
        label: class number, counted from 0.
        recordings: modality to where its frames lie and which are used.
        where: what names the clip: a line of a split list ("file:line") or its folder.
    """

    name: str
    label: int
    recordings: Mapping[str, Recording]
    where: str


@dataclasses.dataclass(frozen=True)
class RawClips:
    """The clips of a raw data set.

    Attributes:
        modalities: those that the data set has, of "rgb" and "depth".
        class_names: the classes, by label.
        splits: split to its good clips.
        problems: what is wrong with the other clips.
        metadata: what else is kept with the prepared data set, such as its protocols.
    """

    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[RawClip]]
    problems: Sequence[Problem]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A clip that is to be found on disk.

    Attributes:
        name: name of the clip, unique in its split.
        label: class number, counted from 0.
        frame_count: how many frames are used; all if None.
        where: what names the clip: a line of a list ("file:line") or its folder.
    """

    name: str
    label: int
    frame_count: int | None
    where: str


def find_modalities(raw_dir: Path) -> tuple[str, ...]:
    """Returns which of "rgb" and "depth" the raw data set has.

    Raises:
        FileNotFoundError: there is no such folder, or neither rgb/ nor depth/ in it.
    """
    if not raw_dir.is_dir():
        raise FileNotFoundError(f"{raw_dir}: no such folder; expected raw clips there, in rgb/ and depth/")
    modalities = tuple(modality for modality in MODALITIES if (raw_dir / modality).is_dir())
    if not modalities:
        raise FileNotFoundError(f"{raw_dir}: holds neither rgb/ nor depth/; expected raw clips in one or both of them")
    return modalities


def clips_from_lists(
    raw_dir: Path,
    lists_dir: Path,
    class_names: Sequence[str] | None = None,
    frame_pattern: str | None = None,
) -> RawClips:
    """Finds and checks the clips that split lists name.

    Args:
        raw_dir: holds rgb/, depth/ or both.
        lists_dir: holds the lists, as `find_split_lists` finds them.
        class_names: the classes; without them, as many as the largest label asks for, named by their numbers.
        frame_pattern: file name of frame i as `frame_pattern % i`; None for natural numeric order.

    Returns:
        The clips in the order of the lists, and what is wrong with the others.

    Raises:
        FileNotFoundError: there are no raw clips at all.
        RawDataError: a list cannot be read, or there is none.
    """
    modalities = find_modalities(raw_dir)
    lists = find_split_lists(lists_dir)
    if not lists:
        names = ", ".join(f"{alias}.txt" for aliases in SPLIT_ALIASES.values() for alias in aliases)
        raise RawDataError(
            [Problem(str(lists_dir), f"expected split lists ({names}), found none", one_clip=False, kind="missing")]
        )
    problems: list[Problem] = []
    candidates = {}
    for split, file in lists.items():
        lines, faults = read_split_list(file, len(class_names) if class_names else None)
        candidates[split] = _without_duplicates(lines, faults)
        problems += in_split(split, faults)
    if class_names is None:
        labels = [candidate.label for split in candidates.values() for candidate in split]
        class_names = [str(label) for label in range(max(labels, default=-1) + 1)]
    splits = check_splits(candidates, _locator(raw_dir, modalities, frame_pattern), problems)
    return RawClips(modalities, tuple(class_names), splits, problems)


def _without_duplicates(lines: Iterable[SplitLine], problems: list[Problem]) -> list[Candidate]:
    candidates = [Candidate(clip_name(line.path), line.label, line.frame_count, line.where) for line in lines]
    return without_duplicates(candidates, problems)


def without_duplicates(candidates: Iterable[Candidate], problems: list[Problem]) -> list[Candidate]:
    """Returns the first candidate of each name; that there are others is added to `problems`."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        earlier = first.setdefault(candidate.name, candidate)
        if earlier is not candidate:
            what = f"names {candidate.name} a second time; the first is {earlier.where}"
            problems.append(Problem(candidate.where, what, kind="duplicated"))
    return list(first.values())


def clips_from_class_folders(raw_dir: Path) -> RawClips:
    """Finds and checks the clips of `RAW/MODALITY/SPLIT/CLASS/CLIP`; classes are numbered in sorted order.

    Args:
        raw_dir: holds rgb/, depth/ or both.

    Returns:
        The clips in natural numeric order of their paths, and what is wrong with the others.

    Raises:
        FileNotFoundError: there are no raw clips at all.
        RawDataError: the folders are not laid out like this.
    """
    modalities = find_modalities(raw_dir)
    problems: list[Problem] = []
    found: dict[str, dict[str, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for modality in modalities:
        folders = find_split_folders(raw_dir / modality)
        _check_split_folders(raw_dir / modality, folders)
        for split, folder in folders.items():
            for class_folder in _entries(folder):
                if not class_folder.is_dir():
                    what = "expected a folder of one class, found a file"
                    problems.append(Problem(str(class_folder), what, split=split))
                    continue
                clips = found[split][class_folder.name]
                for path in _entries(class_folder):
                    if path.is_dir() or is_video(path):
                        clips.add(clip_name(path.relative_to(raw_dir / modality).as_posix()))
                    else:
                        expected = f"a folder of frames or a video ({', '.join(VIDEO_SUFFIXES)})"
                        problems.append(Problem(str(path), f"expected {expected}, found another file", split=split))
    class_names = tuple(sorted({name for classes in found.values() for name in classes}))
    candidates = {
        split: [
            Candidate(name, label, None, str(raw_dir / modalities[0] / name))
            for label, class_name in enumerate(class_names)
            for name in sorted(found[split][class_name], key=natural_key)
        ]
        for split in SPLIT_ALIASES
        if split in found
    }
    splits = check_splits(candidates, _locator(raw_dir, modalities, None), problems)
    return RawClips(modalities, class_names, splits, problems)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _check_split_folders(root: Path, folders: Mapping[str, Path]) -> None:
    aliases = ", ".join(alias for names in SPLIT_ALIASES.values() for alias in names)
    if not folders:
        expected = f"split lists in {root.parent} (SPLIT.txt) or class folders {root}/SPLIT/CLASS/CLIP"
        raise RawDataError([Problem(str(root), f"expected {expected}, SPLIT being one of {aliases}", one_clip=False)])
    others = [path for path in _entries(root) if path not in folders.values()]
    if others:
        raise RawDataError([Problem(str(path), f"is none of the splits {aliases}", one_clip=False) for path in others])


def _locator(
    raw_dir: Path, modalities: Sequence[str], frame_pattern: str | None
) -> Callable[[Candidate], dict[str, Recording]]:
    """Returns what says where the frames of a clip lie that has the same path in every modality."""

    def locate(candidate: Candidate) -> dict[str, Recording]:
        found = {modality: find_clip(raw_dir / modality, candidate.name) for modality in modalities}
        expected = {modality: raw_dir / modality / candidate.name for modality in modalities}
        paths = complete(candidate.where, found, expected)
        return {
            modality: Recording(path, count=candidate.frame_count, pattern=frame_pattern)
            for modality, path in paths.items()
        }

    return locate


def complete(where: str, found: Mapping[str, Path | None], expected: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the files of a clip by modality.

    Args:
        where: what names the clip.
        found: modality to the clip's folder or video, None if there is none.
        expected: modality to where it was looked for.

    Raises:
        RawDataError: a modality is missing.
    """
    files = {modality: path for modality, path in found.items() if path is not None}
    missing = [str(expected[modality]) for modality in found if modality not in files]
    if missing:
        only = f"; it is in {' and '.join(files)} only" if files else ""
        kind: Kind = "unpaired" if files else "missing"
        raise RawDataError([Problem(where, f"there is no clip {' or '.join(missing)}{only}", kind=kind)])
    return files


def check_clips(
    candidates: Sequence[Candidate],
    locate: Callable[[Candidate], Mapping[str, Recording]],
    problems: list[Problem],
) -> list[RawClip]:
    """Finds clips on disk and counts their frames, many at a time.

    Args:
        candidates: the clips.
        locate: says where the frames of a clip lie, by modality, or raises RawDataError.
        problems: what is wrong with clips is added here.

    Returns:
        The good clips, in order. The frames of videos are counted when they are read.
    """

    def check(candidate: Candidate) -> RawClip | Sequence[Problem]:
        try:
            recordings = locate(candidate)
            counts = {
                modality: len(frame_files(recording))
                for modality, recording in recordings.items()
                if not is_video(recording.path)
            }
            check_frame_counts(candidate.where, counts)
        except RawDataError as error:
            return error.problems
        except OSError as error:
            return [Problem(candidate.where, f"cannot be read: {error}")]
        return RawClip(candidate.name, candidate.label, recordings, candidate.where)

    clips = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for result in threads.map(check, candidates):
            if isinstance(result, RawClip):
                clips.append(result)
            else:
                problems.extend(result)
    return clips


def check_splits(
    candidates: Mapping[str, Sequence[Candidate]],
    locate: Callable[[Candidate], Mapping[str, Recording]],
    problems: list[Problem],
) -> dict[str, list[RawClip]]:
    """Does what `check_clips` does for the clips of every split."""
    splits = {}
    for split, each in candidates.items():
        faults: list[Problem] = []
        splits[split] = check_clips(each, locate, faults)
        problems += in_split(split, faults)
    return splits


def check_frame_counts(where: str, counts: Mapping[str, int]) -> None:
    """Makes sure that a clip has as many frames in one modality as in the other.

    Raises:
        RawDataError: it has not.
    """
    if len(set(counts.values())) > 1:
        numbers = " and ".join(f"{count} {modality}" for modality, count in counts.items())
        what = f"expected as many depth frames as rgb frames, found {numbers} frames"
        raise RawDataError([Problem(where, what, kind="unpaired")])
