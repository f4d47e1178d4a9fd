"""The folder of a data set that is not complete: locked while it is built, kept for the next run."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from rgbd_jax.ingest.shards import REPORTS, remove_leftovers


def incomplete_path(directory: Path) -> Path:
    """Returns where a data set is built that will lie in `directory`; its name is that of no version."""
    return directory.with_name(f"incomplete.{directory.name}")


@contextlib.contextmanager
def incomplete_folder(directory: Path) -> Iterator[Path]:
    """Gives the folder in which to build what will lie in `directory`, with what an earlier run has left there.

    Another build of the same data set is waited for. Afterwards the folder is gone if nothing in it is finished.

    Args:
        directory: where the data set will lie.

    Yields:
        The folder; it has a folder for reports.
    """
    folder = incomplete_path(directory)
    lock = _lock(folder)
    try:
        remove_leftovers(folder)
        remove_leftovers(folder / REPORTS)
        yield folder
    finally:
        if folder.is_dir() and not any(folder.glob("*.array_record-*")):
            shutil.rmtree(folder)
        os.close(lock)


def _lock(folder: Path) -> int:
    """Makes a folder and locks it; the lock ends when the descriptor that is returned is closed."""
    while True:
        (folder / REPORTS).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("another process builds in %s; waiting for it", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems
            logging.warning("%s cannot be locked (%s): make sure that no other process builds there", folder, error)
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            # Who held the lock may have completed the folder, which then has another name.
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)) and (folder / REPORTS).is_dir():
                return descriptor
        os.close(descriptor)
