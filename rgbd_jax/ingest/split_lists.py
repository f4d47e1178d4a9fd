"""Text files that list clips, first of all split lists in the reference's format: `path frame_count label` a line."""

import codecs
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.clip_files import MAX_FRAMES, ClipSpec, clip_name, natural_key
from rgbd_jax.ingest.problems import Kind, LabelError, Problem, RawDataError, bad_data
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.regular_files import read_file

LISTS_FOLDER = "dataset_splits"  # where users of the reference keep its lists
MAX_CLASSES = 1 << 16  # of which each has a name in the prepared data set
_MAX_BYTES, _MAX_LINE_BYTES = 1 << 28, 1 << 13  # of a list and of its lines
_NUMBER = "-?[0-9]{1,4000}"  # Python converts no more digits
_ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
SPLIT_NAMES = tuple(alias for aliases in _ALIASES.values() for alias in aliases)
"""What the list or the folder of a split may be called."""


def read_lines(file: Path) -> list[tuple[str, str]]:
    """Returns the lines of a text file that are not blank, stripped, each after its place ("file:line")."""
    if not file.exists():
        raise bad_data(file, "no such file")
    lines = []
    whole = read_file(file, _MAX_BYTES, bad_data).removeprefix(codecs.BOM_UTF8)
    for number, content in enumerate(whole.splitlines(), start=1):
        where = f"{file}:{number}"
        if len(content) > _MAX_LINE_BYTES:
            raise bad_data(where, f"has {len(content):,} bytes in a line; expected at most {_MAX_LINE_BYTES:,}")
        try:
            line = content.decode().strip()
        except UnicodeDecodeError as error:
            raise bad_data(where, f"is not UTF-8 text ({error.reason}); save the file as UTF-8") from error
        if line:
            lines.append((where, line))
    if not lines:
        raise bad_data(file, "names nothing: all of its lines are blank")
    return lines


def read_clips(
    file: Path, parse: Callable[[str, str], ClipSpec], split: str, problems: list[Problem]
) -> list[ClipSpec]:
    """Reads a list of clips; of several with one name the first counts.

    `parse` makes a clip of a line and its place; its ValueError, or LabelError, is added to `problems`.
    """
    clips: dict[str, ClipSpec] = {}
    for where, line in read_lines(file):
        try:
            clip = parse(line, where)
        except ValueError as error:
            kind: Kind = "mislabelled" if isinstance(error, LabelError) else "unreadable"
            problems.append(Problem(where, str(error), kind, split=split))
            continue
        first = clips.setdefault(clip.name, clip)
        if first is not clip:
            what = f"names {clip.name} a second time; the first is {first.where}"
            problems.append(Problem(where, what, "duplicated", split=split))
    return list(clips.values())


def relative_path(text: str) -> PurePosixPath:
    """Returns a path of a list; raises ValueError if it leads out of the folder of the clips."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"expected a path below the folder of the clips, found {text!r}")
    return path


def label_from_1(text: str, num_classes: int) -> int:
    """Returns a label that a list counts from 1, counted from 0; raises LabelError if there is no such class."""
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= num_classes:
        raise LabelError(f"expected a label from 1 to {num_classes}, found {text!r}")
    return int(text) - 1


def read_split_list(
    file: Path,
    problems: list[Problem],
    split: str = "",
    num_classes: int = MAX_CLASSES,
    name_of: Callable[[str], str] = clip_name,
) -> list[ClipSpec]:
    """Reads a split list in the reference's format, as `read_clips` does.

    Labels must lie below `num_classes`; `name_of` gives the clip that a path of the list stands for, or ValueError.
    """

    def parse(line: str, where: str) -> ClipSpec:
        fields = line.rsplit(maxsplit=2)  # there may be blanks in the path
        if len(fields) != 3 or not all(re.fullmatch(_NUMBER, field) for field in fields[1:]):
            raise ValueError(f"expected `path frame_count label` with two whole numbers, found {line!r}")
        path, frame_count, label = relative_path(fields[0]), int(fields[1]), int(fields[2])
        if not 1 <= frame_count <= MAX_FRAMES:
            raise ValueError(f"expected a frame count from 1 to {MAX_FRAMES}, found {frame_count} in {line!r}")
        if not 0 <= label < num_classes:
            raise LabelError(f"expected a label from 0 to {num_classes - 1}, found {label} in {line!r}")
        return ClipSpec(name_of(str(path)), label, where, frame_count)

    return read_clips(file, parse, split, problems)


def find_splits(folder: Path, suffix: str = ".txt") -> dict[str, Path]:
    """Returns split ("train", "validation", "test") to its list in `folder`, or to its folder with `suffix=""`."""
    found: dict[str, Path] = {}
    for split, aliases in _ALIASES.items():
        paths = [path for alias in aliases if (path := folder / f"{alias}{suffix}").exists()]
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise bad_data(folder, f"{names} both stand for split {split}; keep one")
        if paths:
            found[split] = paths[0]
    return found


def read_lists(
    folder: Path, problems: list[Problem], num_classes: int, name_of: Callable[[str], str] = clip_name
) -> dict[str, list[ClipSpec]]:
    """Returns split to the clips of its list in `folder` or, without one, in a folder of each modality; {} if none.

    Lists are read by `read_split_list`. The modalities have to list the same clips in the same splits.
    """

    def read(lists: Path, faults: list[Problem]) -> dict[str, list[ClipSpec]]:
        files = find_splits(lists).items()
        return {split: read_split_list(file, faults, split, num_classes, name_of) for split, file in files}

    def lines_of(splits: dict[str, list[ClipSpec]]) -> dict[tuple, str]:
        return {(s, clip.name, clip.label, clip.frame_count): clip.where for s in splits for clip in splits[s]}

    folders = [folder] if find_splits(folder) else [folder / m for m in MODALITIES if find_splits(folder / m)]
    splits = read(folders[0], problems) if folders else {}
    for other in folders[1:]:
        here, there = lines_of(splits), lines_of(read(other, []))
        unmatched = {here[key]: other for key in here.keys() - there}
        unmatched |= {there[key]: folders[0] for key in there.keys() - here}
        if unmatched:
            places = sorted(unmatched, key=natural_key)
            raise RawDataError([Problem(p, f"no such line in {unmatched[p]}", skippable=False) for p in places])
    return splits
