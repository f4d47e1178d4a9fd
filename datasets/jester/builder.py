"""TFDS builder of `jester`."""

import re
from pathlib import Path

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import ClipSpec
from rgbd_jax.ingest.discovery import RawClips, check_clips, check_folder, locator
from rgbd_jax.ingest.problems import LabelError, Problem, bad_data
from rgbd_jax.ingest.split_lists import LISTS_FOLDER, read_clips, read_lines, read_lists

_CLIPS = "20bn-jester-v1"
_CSV = "jester-v1-{}.csv"
_CLASSES = 27


class Jester(RawClipsBuilder):
    """20BN-Jester V1: `RAW/20bn-jester-v1/ID/00001.jpg` and so on, and `RAW/jester-v1-{labels,train,validation}.csv`.

    Split lists in the reference's format decide instead of the last two where there are any, in `RAW/dataset_splits`.
    Classes are numbered as the lines of `jester-v1-labels.csv`. The test clips have no labels.
    """

    name = "jester"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        check_folder(raw_dir / _CLIPS, "a folder of frames for every clip")
        class_names = _read_class_names(raw_dir / _CSV.format("labels"))
        problems: list[Problem] = []

        def parse(line: str, where: str) -> ClipSpec:
            name, separator, label = (part.strip() for part in line.partition(";"))
            if not separator or not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"expected `id;label`, found {line!r}")
            if label not in class_names:
                raise LabelError(f"expected a label of {_CSV.format('labels')}, found {label!r}")
            return ClipSpec(name, class_names.index(label), where)

        splits = read_lists(raw_dir / LISTS_FOLDER, problems, _CLASSES, _name_of) or {
            split: read_clips(raw_dir / _CSV.format(split), parse, split, problems) for split in ("train", "validation")
        }
        locate = locator({"rgb": raw_dir / _CLIPS}, first=1)
        return RawClips(class_names, check_clips(splits, locate, problems), problems)


def _name_of(path: str) -> str:
    name = path.removeprefix(f"{_CLIPS}/")
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"expected the number of a clip, such as 34870, found {path!r}")
    return name


def _read_class_names(file: Path) -> tuple[str, ...]:
    names: dict[str, str] = {}
    for where, name in read_lines(file):
        if names.setdefault(name, where) != where:
            raise bad_data(where, f"names {name!r} a second time; the first is {names[name]}")
    if len(names) != _CLASSES:
        raise bad_data(file, f"expected {_CLASSES} classes, found {len(names)}")
    return tuple(names)
