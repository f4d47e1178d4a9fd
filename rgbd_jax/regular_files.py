"""Regular files of a bounded size: a named pipe or a device may be waited for, or read, for ever."""

import stat
from collections.abc import Callable
from pathlib import Path

from rgbd_jax.storage import is_remote, size

_OTHERS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}

Refuse = Callable[[Path, str], Exception]


def check_regular(file: Path, refuse: Refuse = lambda file, problem: ValueError(f"{file} {problem}")) -> int:
    """Returns the size of a regular file; for any other, which is not opened, raises what `refuse` returns.

    In object storage all files are regular.
    """
    if is_remote(file):
        return size(file)
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise refuse(file, f"is a {_OTHERS.get(stat.S_IFMT(status.st_mode), 'special file')}; expected a file")
    return status.st_size


def read_file(file: Path, most: int, refuse: Refuse) -> bytes:
    """Returns the content of a regular file of at most `most` bytes; errors are those of `check_regular`."""
    found = check_regular(file, refuse)
    if found > most:
        raise refuse(file, f"has {found:,} bytes; expected at most {most:,}")
    with file.open("rb") as stream:
        return stream.read(found)
