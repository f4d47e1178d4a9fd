"""Encoded frames in a file beside their shard, each read alone: `data build --depth_storage=fast`.

A record is read whole. Where it holds places, "FILE OFFSET LENGTH", instead of frames, only the frames that a clip
takes are read, and none for the other modality.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rgbd_jax.storage import read_range


def append_frame(file: BinaryIO, name: str, encoded: bytes) -> bytes:
    """Appends a frame to a file that will be called `name`; returns its place."""
    place = f"{name} {file.tell()} {len(encoded)}"
    file.write(encoded)
    return place.encode()


class StoredFrames(Sequence[bytes]):
    """The encoded frames at some places in the files of a folder."""

    def __init__(self, directory: Path, places: Sequence[bytes]):
        self._directory, self._places = directory, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return StoredFrames(self._directory, self._places[index])
        name, offset, length = self._places[index].decode().rsplit(" ", 2)
        path = self._directory / name
        encoded = read_range(path, int(offset), int(length))
        if len(encoded) != int(length):
            raise ValueError(f"{path} ends {int(length) - len(encoded)} bytes too early, within a frame of {length}")
        return encoded
