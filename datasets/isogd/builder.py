"""TFDS builder of `isogd`."""

import re
from pathlib import Path, PurePosixPath

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import ClipSpec, clip_name, find_clip
from rgbd_jax.ingest.discovery import RawClips, check_clips, check_folder, locator
from rgbd_jax.ingest.problems import Problem, bad_data
from rgbd_jax.ingest.split_lists import LISTS_FOLDER, label_from_1, read_clips, read_lines, read_lists, relative_path
from rgbd_jax.modalities import MODALITIES

_CLASSES = 249  # the gestures have numbers, no names
_PREFIXES = {"rgb": "M_", "depth": "K_"}
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_LISTS = ("{}_list.txt", "IsoGD_labels/{}.txt")


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
        check_folder(raw_dir, "train/, valid/, test/ and their lists")
        problems: list[Problem] = []
        lists = read_lists(raw_dir / LISTS_FOLDER, problems, _CLASSES, name_of)
        splits = lists or _read_own_lists(raw_dir, problems)
        roots = {modality: raw_dir / modality if (raw_dir / modality).is_dir() else raw_dir for modality in MODALITIES}
        clips = [clip for each in splits.values() for clip in each]
        roots = {m: root for m, root in roots.items() if any(find_clip(root / _path_of(c.name, m)) for c in clips)}
        if not roots:
            raise FileNotFoundError(f"{raw_dir}: none of the {len(clips)} clips of the lists is there")
        class_names = tuple(f"{number:03d}" for number in range(1, _CLASSES + 1))
        locate = locator(roots, first=0, path_of=_path_of)
        return RawClips(class_names, check_clips(splits, locate, problems), problems)


def name_of(path: str) -> str:
    """Returns the name of a clip, the path of its RGB frames, for that of any modality; raises ValueError for none."""
    name = clip_name(path)
    if not re.fullmatch("[MK]_[0-9]+", PurePosixPath(name).name):
        raise ValueError(f"expected a path such as train/001/M_00001, or K_00001 for depth, found {path!r}")
    return _path_of(name, "rgb")


def _path_of(name: str, modality: str) -> str:
    pure = PurePosixPath(name)
    return str(pure.with_name(_PREFIXES[modality] + pure.name[2:]))


def _read_own_lists(raw_dir: Path, problems: list[Problem]) -> dict[str, list[ClipSpec]]:
    splits = {}
    for folder, split in _SPLITS.items():
        files = [file for name in _LISTS if (file := raw_dir / name.format(folder)).is_file()]
        if len(files) > 1:
            raise bad_data(raw_dir, f"{files[0]} and {files[1]} are both lists of {folder}; keep the one with labels")
        for file in files:
            if all(len(line.split()) == 2 for _, line in read_lines(file)):
                what = "has no labels; the labels of this split come separately (see datasets/isogd/README.md)"
                raise bad_data(f"{file}:1", what)
            splits[split] = read_clips(file, _parse, split, problems)
    if not splits:
        names = " or ".join(name.format("train") for name in _LISTS)
        raise bad_data(raw_dir, f"expected lists ({names}, and so on) or {LISTS_FOLDER}/, found none")
    return splits


def _parse(line: str, where: str) -> ClipSpec:
    fields = line.split()
    if len(fields) != 3:
        raise ValueError(f"expected `M_path K_path label`, found {line!r}")
    rgb, depth, label = fields
    name = name_of(str(relative_path(rgb)))
    if clip_name(rgb) != name or clip_name(depth) != _path_of(name, "depth"):
        raise ValueError(f"expected the same clip twice, as M_ and as K_, found {line!r}")
    return ClipSpec(name, label_from_1(label, _CLASSES), where)
