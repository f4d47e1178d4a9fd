"""Files on disk and in object storage (`gs://bucket/folder`): paths of both have the methods of `pathlib.Path`.

An object is there whole or not at all; it cannot be locked, and nothing can be appended to it.
"""

import argparse
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CHECK_SECONDS = 30  # for the first request to a bucket to succeed
NEEDED = ("fsspec", "gcsfs", "google.cloud.storage", "google.cloud.storage.retry")
INSTALL = "./scripts/setup.sh gcs, or pip install 'rgbd_jax[gcs]'"
CLIENTS = ("aiohttp", "gcsfs", "google", "requests")  # packages whose errors are those of the service or the network


def as_path(text: str | Path) -> Path:
    """Returns the path of a file or folder on disk, or of a URL: an `epath.Path`, which is no `pathlib.Path`."""
    if is_remote(text):
        return cast(Path, text)
    url = re.match(r"([a-z0-9]+)://([^/]*)", str(text))
    if url is None:
        return Path(text).expanduser()
    if url[1] != "gs":
        raise ValueError(
            f"{text}: of object storage only gs:// can be used, since Orbax writes no checkpoints to {url[1]}:// and "
            f"ArrayRecord reads none of its files: mount the bucket as a folder, or copy it to disk"
        )
    _check_access(url[2])
    from etils import epath

    return cast(Path, epath.Path(text))


def disk_path(text: str) -> Path:
    """Parses the path of a file that is written on disk alone, for `argparse`."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: expected a path on disk; copy the file from there")
    return Path(text)


def is_remote(path: str | Path) -> bool:
    """Returns whether a path is in object storage."""
    return not isinstance(path, str | Path)


def absolute(path: Path) -> Path:
    """Returns an absolute path."""
    return path if is_remote(path) else path.absolute()


def size(path: Path) -> int:
    """Returns the size of a file in bytes."""
    return cast(Any, path.stat()).length if is_remote(path) else path.stat().st_size


def files_below(folder: Path) -> Iterator[Path]:
    """Yields all files of a folder and its sub-folders."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        elif path.is_file():
            yield path


def move(source: Path, target: Path) -> None:
    """Moves a folder; in object storage, where nothing can be renamed, by copying."""
    if is_remote(source):
        _filesystem().mv(str(source), str(target), recursive=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def upload(file: Path, target: Path) -> None:
    """Writes a file on disk to object storage."""
    _filesystem().put_file(str(file), str(target))


def read_range(path: Path, offset: int, length: int) -> bytes:
    """Returns some bytes of a file, fewer where it ends earlier."""
    if is_remote(path):
        return _filesystem().cat_file(str(path), offset, offset + length)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(length)


def is_service_error(error: BaseException) -> bool:
    """Returns whether an error is of the service or the way to it, and no fault of a program."""
    return type(error).__module__.partition(".")[0] in CLIENTS


def _filesystem() -> "AbstractFileSystem":
    import fsspec

    return fsspec.filesystem("gcs")


@functools.cache
def _check_access(bucket: str) -> None:
    try:
        fsspec, _, client, retry = map(importlib.import_module, NEEDED)
    except ImportError as error:
        raise ValueError(f"gs://{bucket} needs the package {error.name}, which is not installed: {INSTALL}") from error
    # By default listings are cached for as long as the process lives; TensorStore and other processes write too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        within = retry.DEFAULT_RETRY.with_timeout(CHECK_SECONDS)
        listed = client.Client().list_blobs(bucket, max_results=1, retry=within)
        next(iter(listed), None)
    except Exception as error:  # of the credentials, the network and the service
        advice = "check its name and your rights; `gcloud auth application-default login` gives this machine yours"
        reason = " ".join(str(error).split()).rstrip(".")
        raise OSError(f"gs://{bucket} cannot be used: {reason[:400]}; {advice}") from error
