"""What all checkpoint files share: telling the format from the content, one error type, and giving memory back."""

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

Format = Literal["pytorch_zip", "pytorch_legacy", "safetensors"]

ZIP_START = b"PK\x03\x04"
# A pickle of protocol 2 to 5 that holds the number 0x1950a86a20f9469cfc6c.
LEGACY_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.", re.DOTALL)

DOWNLOAD_AGAIN = "download it again and compare its size"
# Start of a file (lower case) -> what such a file is, and what to do.
OTHER_FILES = (
    (rb"\s*(<!doctype html|<html)", "an HTML page, not a checkpoint: hosts such as Google Drive send a warning page "
     "instead of a large file; open the link in a browser and download the file itself"),
    (rb"\s*<\?xml", "an XML page, probably a host's error message, not a checkpoint: download the file itself"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the checkpoint itself: run `git lfs pull` at its origin"),
    (rb"\x1f\x8b", "gzip-compressed: unpack it first (gunzip, or tar xzf)"),
    (rb"bzh", "bzip2-compressed: unpack it first"),
    (rb"\xfd7zxz\x00", "xz-compressed: unpack it first"),
    (rb"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (rb".{257}ustar", "a tar archive: unpack it and give the file within (PyTorch's *.pth.tar files are no tar "
     "archives in spite of their name; only versions before 0.2 wrote tar archives, which are not read here)"),
    (rb"pk\x05\x06", f"an empty zip archive: {DOWNLOAD_AGAIN}"),
    (rb"\x89hdf", "an HDF5 file, not a PyTorch or safetensors checkpoint"),
    (rb"\x80[\x00-\x05]", "a pickle that torch.save did not write; it was not opened, since a pickle can run commands"),
)  # fmt: skip


class CheckpointFileError(ValueError):
    """A checkpoint file that is damaged, of another format, or holds something other than tensors and plain values."""


class RefusedError(Exception):
    """Why a file is refused, without its name: `naming` adds it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns a RefusedError within into a CheckpointFileError that names the file."""
    try:
        yield
    except RefusedError as error:
        raise CheckpointFileError(f"{path}: {error}") from error.__cause__


def sniff(path: str | os.PathLike[str]) -> Format:
    """Returns the format of a checkpoint file, told from its first bytes and never from its name.

    Any zip archive counts as "pytorch_zip" here; whether PyTorch wrote it shows when it is read.

    Raises:
        CheckpointFileError: the file is none of the three formats; says what it is instead and what to do.
        OSError: the file is missing or unreadable.
    """
    path = Path(path)
    with naming(path), path.open("rb") as file:
        return format_of(file.read(512), path.stat().st_size)


def format_of(start: bytes, size: int) -> Format:
    """Returns the format of a file that begins with `start` (its first 512 bytes) and has `size` bytes.

    Raises:
        RefusedError: it is none of the three.
    """
    if not size:
        raise RefusedError(f"the file is empty: {DOWNLOAD_AGAIN}")
    if start.startswith(ZIP_START):
        return "pytorch_zip"
    if LEGACY_START.match(start):
        return "pytorch_legacy"
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    for pattern, found in OTHER_FILES:
        if re.match(pattern, start.lower(), re.DOTALL):
            raise RefusedError(f"the file is {found}")
    raise RefusedError(
        f"neither a PyTorch nor a safetensors checkpoint; it begins with {start[:16]!r}. If it should be one, "
        f"{DOWNLOAD_AGAIN}"
    )


def release_pages(array: np.ndarray) -> None:
    """Gives back the memory of the pages of a file that an array looked into; they are read again when needed."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
