"""The lists that NvGesture comes with, one gesture a line.

A line holds blank- or tab-separated fields: `path:./Video_data/class_01/subject13_r0`, the video and the frames of each
sensor, such as `color:sk_color:138:218` (the frame after the last one is 218), and `label:1`, counted from 1.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.problems import LabelError, Problem, RawDataError, line_problem

SENSORS = {"rgb": "color", "depth": "depth"}
"""Modality to the name of its field."""


@dataclasses.dataclass(frozen=True)
class VideoRange:
    """The frames of a gesture in the video of one sensor.

    Attributes:
        video: the video, relative to the folder of the data set.
        first: the first frame, counted from 0.
        stop: the frame after the last one.
    """

    video: str
    first: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Gesture:
    """One line of a list.

    Attributes:
        name: the recording, such as "class_01/subject13_r0".
        label: class number, counted from 0.
        ranges: modality to its frames.
        where: "file:line".
    """

    name: str
    label: int
    ranges: Mapping[str, VideoRange]
    where: str


def read_lst(file: Path, num_classes: int) -> tuple[list[Gesture], list[Problem]]:
    """Reads a list; blank lines and the fields of other sensors do not matter.

    Returns:
        The good lines in their order, and what is wrong with the others.

    Raises:
        RawDataError: the file is no text, or names no gesture.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RawDataError([Problem(str(file), "is not UTF-8 text; save it as UTF-8", one_clip=False)]) from error
    gestures: list[Gesture] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            gestures.append(_parse(line, num_classes, where))
        except ValueError as error:
            problems.append(line_problem(where, error, line.strip()))
    if not gestures and not problems:
        raise RawDataError([Problem(str(file), "names no gesture", one_clip=False)])
    return gestures, problems


def _parse(line: str, num_classes: int, where: str) -> Gesture:
    fields = dict(field.partition(":")[::2] for field in line.split())
    missing = [key for key in ("path", *SENSORS.values(), "label") if not fields.get(key)]
    if missing:
        raise ValueError(f"expected a field {' and '.join(f'{key}:…' for key in missing)}, found none")
    path = PurePosixPath(fields["path"])
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise ValueError(f"expected a path such as ./Video_data/class_01/subject13_r0, found {fields['path']!r}")
    if not re.fullmatch("[0-9]+", fields["label"]) or not 1 <= int(fields["label"]) <= num_classes:
        raise LabelError(f"expected a label from 1 to {num_classes}, found {fields['label']!r}")
    ranges = {modality: _range(path, sensor, fields[sensor]) for modality, sensor in SENSORS.items()}
    lengths = {modality: each.stop - each.first for modality, each in ranges.items()}
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{count} of {SENSORS[modality]}" for modality, count in lengths.items())
        raise ValueError(f"expected as many frames of each sensor, found {found}")
    return Gesture("/".join(path.parts[-2:]), int(fields["label"]) - 1, ranges, where)


def _range(path: PurePosixPath, sensor: str, text: str) -> VideoRange:
    match = re.fullmatch(r"(\w+):([0-9]+):([0-9]+)", text)
    if match is None or int(match[2]) >= int(match[3]):
        raise ValueError(f"expected {sensor}:VIDEO:START:END with START before END, found '{sensor}:{text}'")
    return VideoRange(str(path / f"{match[1]}.avi"), int(match[2]), int(match[3]))
