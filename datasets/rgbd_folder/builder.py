"""TFDS builder of `rgbd_folder`."""

from pathlib import Path

from rgbd_jax.ingest.discovery import RawClips, clips_from_class_folders, clips_from_lists
from rgbd_jax.ingest.problems import Problem, RawDataError
from rgbd_jax.ingest.raw_clips import RawClipsBuilder
from rgbd_jax.ingest.splits import find_split_lists

_CLASS_NAMES = "classes.txt"


class RgbdFolder(RawClipsBuilder):
    """A user's own clips, labelled by split lists (`RAW/train.txt`) or, where there are none, by class folders."""

    @staticmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""
        if find_split_lists(raw_dir):
            return clips_from_lists(raw_dir, raw_dir, _class_names(raw_dir / _CLASS_NAMES))
        return clips_from_class_folders(raw_dir)


def _class_names(file: Path) -> list[str] | None:
    """Reads the names of the classes, one a line, None if there is no such file."""
    if not file.exists():
        return None
    try:
        names = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise RawDataError([Problem(str(file), "is not UTF-8 text; save it as UTF-8", one_clip=False)]) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"names {twice[0]!r} more than once" if twice else "names no class"
        raise RawDataError([Problem(str(file), what, one_clip=False)])
    return names
