"""TFDS builder of `isogd`."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.clip_files import Recording, clip_name, find_clip, is_video
from rgbd_jax.ingest.discovery import Candidate, RawClips, check_splits, complete, without_duplicates
from rgbd_jax.ingest.problems import LabelError, Problem, RawDataError, in_split, line_problem
from rgbd_jax.ingest.raw_clips import RawClipsBuilder
from rgbd_jax.ingest.reference_lists import LISTS_FOLDER, find_lists, read_lists
from rgbd_jax.modalities import MODALITIES

_CLASS_NAMES = tuple(f"{number:03d}" for number in range(1, 250))  # the gestures have numbers, no names
_PREFIXES = {"rgb": "M_", "depth": "K_"}
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_LIST_NAMES = ("{}_list.txt", "IsoGD_labels/{}.txt")
_FRAME_PATTERN = "%06d.jpg"


class IsoGd(RawClipsBuilder):
    """ChaLearn IsoGD, videos as they come or frames in the layout of the reference.

    As they come: `RAW/{train,valid,test}/001/{M,K}_00001.avi` and `RAW/{train,valid,test}_list.txt`. In the layout of
    the reference: folders of frames or videos under `RAW/rgb` and `RAW/depth`, and split lists in `RAW/dataset_splits`,
    or in its folders `rgb` and `depth`; these lists decide where there are both. A clip is named as its RGB frames.
    """

    name = "isogd"

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        problems: list[Problem] = []
        lists = find_lists(raw_dir / LISTS_FOLDER, MODALITIES)
        if lists:
            candidates = read_lists(lists, len(_CLASS_NAMES), name_of, problems)
        else:
            candidates = _read_own_lists(raw_dir, problems)
        roots = {modality: raw_dir / modality if (raw_dir / modality).is_dir() else raw_dir for modality in MODALITIES}
        everything = [candidate for split in candidates.values() for candidate in split]
        modalities = tuple(
            modality
            for modality, root in roots.items()
            if any(find_clip(root, _path_of(candidate.name, modality)) for candidate in everything)
        )
        if not modalities:
            raise FileNotFoundError(f"{raw_dir}: none of the {len(everything)} clips of the lists is there")

        def locate(candidate: Candidate) -> Mapping[str, Recording]:
            names = {modality: _path_of(candidate.name, modality) for modality in modalities}
            found = {modality: find_clip(roots[modality], name) for modality, name in names.items()}
            expected = {modality: roots[modality] / name for modality, name in names.items()}
            return {
                modality: Recording(
                    path, count=candidate.frame_count, pattern=None if is_video(path) else _FRAME_PATTERN
                )
                for modality, path in complete(candidate.where, found, expected).items()
            }

        splits = check_splits(candidates, locate, problems)
        return RawClips(modalities, _CLASS_NAMES, splits, problems)


def name_of(path: str) -> str:
    """Returns the name of a clip, the path of its RGB frames, for that of any modality; raises ValueError for none."""
    pure = PurePosixPath(clip_name(path))
    if not re.fullmatch("[MK]_[0-9]+", pure.name):
        raise ValueError(f"expected a path such as train/001/M_00001, or K_00001 for depth, found {path!r}")
    return str(pure.with_name(_PREFIXES["rgb"] + pure.name[2:]))


def _path_of(name: str, modality: str) -> str:
    pure = PurePosixPath(name)
    return str(pure.with_name(_PREFIXES[modality] + pure.name[2:]))


def _read_own_lists(raw_dir: Path, problems: list[Problem]) -> dict[str, list[Candidate]]:
    """Reads the lists that the data set comes with; what is wrong with single lines is added to `problems`."""
    if not raw_dir.is_dir():
        raise FileNotFoundError(f"{raw_dir}: no such folder; expected train/, valid/, test/ and their lists in it")
    splits = {}
    for folder, split in _SPLITS.items():
        files = [file for name in _LIST_NAMES if (file := raw_dir / name.format(folder)).is_file()]
        if len(files) > 1:
            what = f"{files[0]} and {files[1]} are both lists of {folder}; keep the one with labels"
            raise RawDataError([Problem(str(raw_dir), what, one_clip=False)])
        for file in files:
            faults: list[Problem] = []
            splits[split] = without_duplicates(_read_own_list(file, faults), faults)
            problems += in_split(split, faults)
    if not splits:
        names = " or ".join(name.format("train") for name in _LIST_NAMES)
        what = f"expected lists ({names}, and so on) or {LISTS_FOLDER}/, found none"
        raise RawDataError([Problem(str(raw_dir), what, one_clip=False)])
    return splits


def _read_own_list(file: Path, problems: list[Problem]) -> list[Candidate]:
    try:
        lines = [line.split() for line in file.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise RawDataError([Problem(str(file), "is not UTF-8 text; save it as UTF-8", one_clip=False)]) from error
    if not any(lines):
        raise RawDataError([Problem(str(file), "names no clip", one_clip=False)])
    if all(len(fields) == 2 for fields in lines if fields):
        what = "has no labels; the labels of this split come apart (see datasets/isogd/README.md)"
        raise RawDataError([Problem(f"{file}:1", what, one_clip=False)])
    candidates = []
    for number, fields in enumerate(lines, start=1):
        where = f"{file}:{number}"
        try:
            if fields:
                candidates.append(_parse(fields, where))
        except ValueError as error:
            problems.append(line_problem(where, error))
    return candidates


def _parse(fields: list[str], where: str) -> Candidate:
    text = " ".join(fields)
    if len(fields) != 3:
        raise ValueError(f"expected `M_path K_path label`, found {text!r}")
    rgb, depth, label = fields
    name = name_of(rgb)
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"expected a path below the data set's folder, found {rgb!r}")
    if clip_name(rgb) != name or clip_name(depth) != _path_of(name, "depth"):
        raise ValueError(f"expected the same clip twice, as M_ and as K_, found {text!r}")
    if not re.fullmatch("[0-9]+", label) or not 1 <= int(label) <= len(_CLASS_NAMES):
        raise LabelError(f"expected a label from 1 to {len(_CLASS_NAMES)}, found {label!r} in {text!r}")
    return Candidate(name, int(label) - 1, None, where)
