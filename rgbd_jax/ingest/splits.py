"""Split lists in the reference's format: one clip a line, `path frame_count label`."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.problems import LabelError, Problem, RawDataError, line_problem

SPLIT_ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""Split to the names that its list file or its folder may have."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INTEGER = re.compile("-?[0-9]+")


@dataclasses.dataclass(frozen=True)
class SplitLine:
    """One line of a split list.

    Attributes:
        path: the clip, relative to the folder of a modality.
        frame_count: how many frames of the clip are used, from its first one.
        label: class number, counted from 0.
        where: "file:line".
    """

    path: str
    frame_count: int
    label: int
    where: str


def read_split_list(file: Path, num_classes: int | None = None) -> tuple[list[SplitLine], list[Problem]]:
    """Reads a split list; blank lines and blanks around a line do not matter.

    Args:
        file: the list, in UTF-8.
        num_classes: number of classes where it is known; labels must lie below it.

    Returns:
        The good lines in their order, and what is wrong with the others.

    Raises:
        FileNotFoundError: there is no such file.
        RawDataError: the file is not UTF-8, or names no clip.
    """
    lines: list[SplitLine] = []
    problems: list[Problem] = []
    for number, content in enumerate(file.read_bytes().removeprefix(_BYTE_ORDER_MARK).splitlines(), start=1):
        where = f"{file}:{number}"
        try:
            fields = content.decode().split()
        except UnicodeDecodeError as error:
            problem = Problem(where, f"is not UTF-8 text ({error.reason}); save the list as UTF-8", one_clip=False)
            raise RawDataError([problem]) from error
        if not fields:
            continue
        try:
            lines.append(_parse(fields, num_classes, where))
        except ValueError as error:
            problems.append(line_problem(where, error))
    if not lines and not problems:
        raise RawDataError([Problem(str(file), "names no clip", one_clip=False)])
    return lines, problems


def _parse(fields: Sequence[str], num_classes: int | None, where: str) -> SplitLine:
    """Returns a line from its fields; raises ValueError, saying what is wrong with them."""
    text = " ".join(fields)
    if len(fields) != 3 or not all(_INTEGER.fullmatch(field) for field in fields[1:]):
        raise ValueError(f"expected `path frame_count label` with two whole numbers, found {text!r}")
    path, frame_count, label = PurePosixPath(fields[0]), int(fields[1]), int(fields[2])
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"expected a path below the folder of the modality, found {fields[0]!r}")
    if frame_count < 1:
        raise ValueError(f"expected a frame count of at least 1, found {frame_count} in {text!r}")
    if label < 0 or (num_classes is not None and label >= num_classes):
        expected = "0 or more" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise LabelError(f"expected a label {expected}, found {label} in {text!r}")
    return SplitLine(str(path), frame_count, label, where)


def find_split_lists(folder: Path) -> dict[str, Path]:
    """Returns the split lists in `folder` by split ("train", "validation", "test"); none is no error.

    Raises:
        RawDataError: two lists stand for the same split.
    """
    return _by_split(folder, ".txt")


def find_split_folders(folder: Path) -> dict[str, Path]:
    """Returns the folders of splits in `folder` by split ("train", "validation", "test"); none is no error.

    Raises:
        RawDataError: two folders stand for the same split.
    """
    return _by_split(folder, "")


def _by_split(folder: Path, suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, aliases in SPLIT_ALIASES.items():
        paths = [path for alias in aliases if (path := folder / f"{alias}{suffix}").exists()]
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise RawDataError(
                [Problem(str(folder), f"{names} both stand for split {split}; keep one", one_clip=False)]
            )
        if paths:
            found[split] = paths[0]
    return found
