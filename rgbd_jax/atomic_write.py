"""Atomic writes: a file is complete or absent, even if the process is killed."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rgbd_jax.storage import is_remote, upload


@contextmanager
def atomic_write(path: Path, advice: str = "make room, or give another place") -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`, which replaces `path` at the end; makes the folder.

    The file is on disk before it gets its name. After an error `path` is unchanged and the temporary file is removed.
    In object storage the temporary file is on disk, and is uploaded at the end. An OSError that the file cannot be
    written ends with `advice`; those of other files are passed on.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="rgbd_jax") as folder:
            yield Path(folder, path.name)
            try:
                upload(Path(folder, path.name), path)
            except Exception as error:  # of the network and the service
                raise OSError(f"{path} cannot be written: {error}; {advice}") from error
        return
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(exist_ok=False)
        mode = unfinished.stat().st_mode & 0o777
        try:
            yield unfinished
            unfinished.chmod(mode)  # some writers create a file of their own, readable by its owner only
            to_disk(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        with suppress(OSError):  # some network file systems cannot sync folders
            to_disk(path.parent)
    except OSError as error:
        culprit = str(error.filename or unfinished)
        if error.errno is None or culprit not in map(str, (unfinished, *path.parents)):
            raise
        folder = "" if culprit == str(unfinished) else f"{culprit}: "
        raise OSError(f"{path} cannot be written: {folder}{error.strerror}; {advice}") from error


def to_disk(path: Path) -> None:
    """Waits until a file, or a folder's directory entries, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
