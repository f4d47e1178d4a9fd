"""Files that appear under their names whole, or not at all: a killed run leaves no half of one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path, advice: str = "make room, or give another place") -> Iterator[Path]:
    """Yields the path of an unfinished file beside `path`, which becomes `path` at the end; makes the folder.

    Only a complete file, safe on the disk, ever gets the name; after an error `path` is as before and nothing is left.

    Args:
        path: the file.
        advice: what to do where it cannot be written; the error ends with it.

    Raises:
        OSError: the system does not let the file be written; names it. Errors about other files stay as they are.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(exist_ok=False)
        mode = unfinished.stat().st_mode & 0o777
        try:
            yield unfinished
            unfinished.chmod(mode)  # some writers make a file of their own, readable for its owner only
            to_disk(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        with suppress(OSError):  # some network file systems do not sync folders; the file is there
            to_disk(path.parent)
    except OSError as error:
        of_itself = error.filename is None or str(error.filename) == str(unfinished)
        of_its_folder = str(error.filename) in map(str, path.parents)
        if error.errno is None or not (of_itself or of_its_folder):
            raise
        reason = f"{error.filename}: {error.strerror}" if of_its_folder else error.strerror
        raise OSError(f"{path} cannot be written: {reason}; {advice}") from error


def to_disk(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is safe on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
