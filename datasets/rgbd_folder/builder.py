"""TFDS builder of `rgbd_folder`."""

import collections
from pathlib import Path

from rgbd_jax.ingest.builder import RawClipsBuilder
from rgbd_jax.ingest.clip_files import ClipSpec, clip_name, natural_key
from rgbd_jax.ingest.discovery import RawClips, check_clips, check_folder, locator
from rgbd_jax.ingest.problems import Problem, bad_data
from rgbd_jax.ingest.split_lists import MAX_CLASSES, SPLIT_NAMES, find_splits, read_lines, read_split_list
from rgbd_jax.ingest.videos import VIDEO_SUFFIXES, is_video
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.printable import is_utf8


class RgbdFolder(RawClipsBuilder):
    """A user's own clips, in `RAW/rgb`, `RAW/depth` or both, with the same path in each.

    They are labelled by split lists (`RAW/train.txt`, and names of the classes in `RAW/classes.txt` if it is there) or,
    where there are no lists, by class folders: `RAW/rgb/train/wave/clip7`; classes are numbered in sorted order.
    """

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        check_folder(raw_dir, "raw clips, in rgb/ and depth/,")
        roots = {modality: raw_dir / modality for modality in MODALITIES if (raw_dir / modality).is_dir()}
        if not roots:
            raise FileNotFoundError(f"{raw_dir}: holds neither rgb/ nor depth/; expected raw clips in one or both")
        problems: list[Problem] = []
        lists = find_splits(raw_dir)
        if lists:
            class_names = _class_names(raw_dir / "classes.txt")
            num_classes = len(class_names) or MAX_CLASSES
            splits = {split: read_split_list(file, problems, split, num_classes) for split, file in lists.items()}
            labels = [clip.label for clips in splits.values() for clip in clips]
            class_names = class_names or tuple(map(str, range(max(labels, default=-1) + 1)))
        else:
            class_names, splits = _class_folders(roots, problems)
        return RawClips(class_names, check_clips(splits, locator(roots), problems), problems)


def _class_names(file: Path) -> tuple[str, ...]:
    names = tuple(name for _, name in read_lines(file)) if file.exists() else ()
    if len(names) > MAX_CLASSES:
        raise bad_data(file, f"names {len(names):,} classes; expected at most {MAX_CLASSES:,}")
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise bad_data(file, f"names {name!r} more than once")
    return names


def _class_folders(
    roots: dict[str, Path], problems: list[Problem]
) -> tuple[tuple[str, ...], dict[str, list[ClipSpec]]]:
    """Returns the classes and, by split, the clips of `ROOT/SPLIT/CLASS/CLIP` in natural numeric order."""
    classes: set[str] = set()
    found: dict[str, set[str]] = {}  # split to names of clips
    for root in roots.values():
        folders = find_splits(root, suffix="")
        if not folders:
            expected = f"split lists in {root.parent} (SPLIT.txt) or class folders {root}/SPLIT/CLASS/CLIP"
            raise bad_data(root, f"expected {expected}, SPLIT being one of {', '.join(SPLIT_NAMES)}")
        for path in _entries(root):
            if path not in folders.values():
                raise bad_data(path, f"is none of the splits {', '.join(SPLIT_NAMES)}")
        for split, folder in folders.items():
            names = found.setdefault(split, set())
            for class_folder in _entries(folder):
                if not class_folder.is_dir():
                    what = "expected a folder of one class, found a file"
                    problems.append(Problem(str(class_folder), what, split=split))
                    continue
                if not is_utf8(class_folder.name):
                    what = "has a name that is not UTF-8: rename it"
                    problems.append(Problem(str(class_folder), what, split=split))
                    continue
                classes.add(class_folder.name)
                for path in _entries(class_folder):
                    if path.is_dir() or is_video(path):
                        names.add(clip_name(path.relative_to(root).as_posix()))
                    else:
                        expected = f"a folder of frames or a video ({', '.join(VIDEO_SUFFIXES)})"
                        problems.append(Problem(str(path), f"expected {expected}, found another file", split=split))
    class_names = tuple(sorted(classes))
    first = next(iter(roots.values()))
    splits = {}
    for split, names in found.items():
        clips = [ClipSpec(name, class_names.index(name.split("/")[1]), str(first / name)) for name in names]
        splits[split] = sorted(clips, key=lambda clip: (clip.label, natural_key(clip.name)))
    return class_names, splits


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
