"""TFDS builder of `jester`."""

import re
from collections.abc import Mapping
from pathlib import Path

from rgbd_jax.ingest.clip_files import Recording
from rgbd_jax.ingest.discovery import Candidate, RawClips, check_splits, complete, without_duplicates
from rgbd_jax.ingest.problems import Problem, RawDataError, in_split
from rgbd_jax.ingest.raw_clips import RawClipsBuilder
from rgbd_jax.ingest.reference_lists import LISTS_FOLDER, find_lists, read_lists

_CLIPS = "20bn-jester-v1"
_CSV = "jester-v1-{}.csv"
_CLASSES = 27
_SPLITS = ("train", "validation")  # the test clips have no labels


class Jester(RawClipsBuilder):
    """20BN-Jester V1: `RAW/20bn-jester-v1/ID/00001.jpg` and so on, and `RAW/jester-v1-{labels,train,validation}.csv`.

    Split lists in the reference's format decide instead of the last two where there are any, in `RAW/dataset_splits`.
    Classes are numbered as the lines of `jester-v1-labels.csv`.
    """

    name = "jester"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        root = raw_dir / _CLIPS
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected a folder of frames for every clip in it")
        class_names = _read_class_names(raw_dir / _CSV.format("labels"))
        problems: list[Problem] = []
        lists = find_lists(raw_dir / LISTS_FOLDER, ("rgb",))
        if lists:
            candidates = read_lists(lists, len(class_names), _name_of, problems)
        else:
            candidates = {}
            for split in _SPLITS:
                faults: list[Problem] = []
                candidates[split] = _read_csv(raw_dir / _CSV.format(split), class_names, faults)
                problems += in_split(split, faults)

        def locate(candidate: Candidate) -> Mapping[str, Recording]:
            folder = root / candidate.name
            paths = complete(candidate.where, {"rgb": folder if folder.is_dir() else None}, {"rgb": folder})
            recording = Recording(paths["rgb"], count=candidate.frame_count, pattern="%05d.jpg", pattern_first=1)
            return {"rgb": recording}

        splits = check_splits(candidates, locate, problems)
        return RawClips(("rgb",), class_names, splits, problems)


def _name_of(path: str) -> str:
    name = path.removeprefix(f"{_CLIPS}/")
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"expected the number of a clip, such as 34870, found {path!r}")
    return name


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise RawDataError([Problem(str(file), "no such file; it comes with the data set", one_clip=False)])
    try:
        return file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RawDataError([Problem(str(file), "is not UTF-8 text; save it as UTF-8", one_clip=False)]) from error


def _read_class_names(file: Path) -> tuple[str, ...]:
    names: dict[str, int] = {}
    for number, line in enumerate(_lines(file), start=1):
        name = line.strip()
        if name in names:
            what = f"names {name!r} a second time; the first is line {names[name]}"
            raise RawDataError([Problem(f"{file}:{number}", what, one_clip=False)])
        if name:
            names[name] = number
    if len(names) != _CLASSES:
        raise RawDataError([Problem(str(file), f"expected {_CLASSES} classes, found {len(names)}", one_clip=False)])
    return tuple(names)


def _read_csv(file: Path, class_names: tuple[str, ...], problems: list[Problem]) -> list[Candidate]:
    candidates = []
    for number, line in enumerate(_lines(file), start=1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        name, separator, label = (part.strip() for part in line.partition(";"))
        if not separator or not re.fullmatch(r"[\w-]+", name):
            problems.append(Problem(where, f"expected `id;label`, found {line.strip()!r}"))
        elif label not in class_names:
            what = f"expected a label of {_CSV.format('labels')}, found {label!r}"
            problems.append(Problem(where, what, kind="mislabelled"))
        else:
            candidates.append(Candidate(name, class_names.index(label), None, where))
    return without_duplicates(candidates, problems)
