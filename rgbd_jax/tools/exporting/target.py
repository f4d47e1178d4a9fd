"""A file that appears whole, or not at all, and never in place of another one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rgbd_jax.atomic_write import atomic_write


def check_absent(path: Path) -> None:
    """Checks that there is nothing at a path.

    Raises:
        FileExistsError: there is.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: give another name, or remove it")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives the path of an unfinished file, which becomes `path` at the end; makes the folder.

    Raises:
        FileExistsError: there is something at `path`, at the beginning or at the end.
        OSError: it cannot be written; names the file.
    """
    check_absent(path)
    with atomic_write(path) as unfinished:
        yield unfinished
        check_absent(path)
