"""TFDS builder of `nvgesture`."""

from collections.abc import Sequence
from pathlib import Path

from datasets.raw_clips import RawClipsBuilder
from rgbd_jax.data.problems import Problem, RawDataError
from rgbd_jax.data.raw import RawClips, clips_from_lists, find_modalities
from rgbd_jax.data.splits import find_split_lists, read_split_list

_CLASS_NAMES = [f"class_{number:02d}" for number in range(1, 26)]  # as the data set's own folders name them
_LISTS = "dataset_splits"
_FRAME_PATTERN = "%06d.jpg"


class NvGesture(RawClipsBuilder):
    """NVIDIA Dynamic Hand Gesture as frames, in the layout of the reference.

    Frames are `RAW/rgb/CLIP/000000.jpg` and so on, and the same under `RAW/depth` (coloured depth). Split lists are
    `RAW/dataset_splits/{train,valid}.txt`, or one pair of them for each modality in `RAW/dataset_splits/{rgb,depth}`.
    """

    name = "nvgesture"

    def find_clips(self, raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        lists = raw_dir / _LISTS
        modality_lists = [lists / modality for modality in find_modalities(raw_dir)]
        if not find_split_lists(lists) and find_split_lists(modality_lists[0]):
            _check_agreement(modality_lists)
            lists = modality_lists[0]
        return clips_from_lists(raw_dir, lists, _CLASS_NAMES, _FRAME_PATTERN)


def _check_agreement(lists_dirs: Sequence[Path]) -> None:
    """Makes sure that the lists of all modalities hold the same lines, in whatever order."""
    first, *others = ({split: _lines(file) for split, file in find_split_lists(lists).items()} for lists in lists_dirs)
    for lists_dir, other in zip(lists_dirs[1:], others, strict=True):
        if other.keys() != first.keys():
            what = (
                f"expected lists of {' and '.join(first)} as in {lists_dirs[0]}, found {' and '.join(other) or 'none'}"
            )
            raise RawDataError([Problem(str(lists_dir), what, one_clip=False)])
        problems = []
        for split, lines in first.items():
            for mine, theirs, place in ((lines, other[split], lists_dir), (other[split], lines, lists_dirs[0])):
                unmatched = [mine[line] for line in mine if line not in theirs]
                problems += [Problem(where, f"no such line in {place}", one_clip=False) for where in unmatched]
        if problems:
            raise RawDataError(problems)


def _lines(file: Path) -> dict[tuple[str, int, int], str]:
    return {(line.path, line.frame_count, line.label): line.where for line in read_split_list(file)[0]}
