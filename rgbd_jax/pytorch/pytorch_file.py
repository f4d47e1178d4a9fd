"""Reads and writes the checkpoint files of PyTorch (torch.save) without PyTorch, and never runs what they contain."""

import io
import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.pytorch.checkpoint_file import RefusedError, format_of, naming
from rgbd_jax.pytorch.pytorch_pickle import MAX_PICKLE_BYTES, PickleMachine
from rgbd_jax.pytorch.pytorch_pickle_writer import PickleWriter
from rgbd_jax.pytorch.pytorch_tensor import TensorViews
from rgbd_jax.pytorch.pytorch_values import PlainValues
from rgbd_jax.pytorch.pytorch_zip import CHUNK_BYTES, INCOMPLETE, read_directory

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
ZIP_VERSIONS = range(1, 11)
ROOT = "archive"
ALIGNMENT = 64

Ranges = dict[str, tuple[int, int]]


def read_pytorch(path: str | os.PathLike[str]) -> Any:
    """Returns what a file written by torch.save holds, in the zip format or the older one without zip.

    Containers (dict, OrderedDict, list, tuple, set), text, bytes, numbers, truth values and None come as they are,
    torch.Size as a tuple, torch.device and torch.dtype as text ("cuda:0", "torch.float32"), scalars of NumPy as plain
    numbers. Tensors, parameters and storages become arrays of the same shape and type (bfloat16 of ml_dtypes). These
    are read-only and look into the file: they cost no memory until used, and the file must not be overwritten in place
    while they are in use (replacing it by another, as `write_pytorch` does, is fine).

    Every byte of a zip file's entries is checked against its CRC-32. The older format has no checksum: there a
    changed byte is noticed where it breaks the structure, not in the values of a tensor, a number or a text.

    Args:
        path: the file; its name and ending do not matter.

    Raises:
        CheckpointFileError: the file is damaged, of another format, or holds anything else.
        OSError: the file is missing or unreadable.
    """
    path = Path(path)
    with naming(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = format_of(file.read(512), size)
        if found == "safetensors":
            raise RefusedError("a safetensors file, not one of PyTorch: read it with read_safetensors")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        value, ranges = _read_zip(file, size) if found == "pytorch_zip" else _read_legacy(file, size)
        return PlainValues(TensorViews(mapped, ranges).array).convert(value)


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, Ranges]:
    entries = read_directory(file, size)
    roots = {name.split("/")[0] for name in entries}
    root = min(roots, default="")
    if len(roots) != 1 or f"{root}/data.pkl" not in entries or f"{root}/version" not in entries:
        raise RefusedError(
            f"a zip archive that torch.save did not write: expected one folder with data.pkl and version, found "
            f"{', '.join(map(repr, sorted(entries)[:4]))[:200]}. If the checkpoint is inside, unpack it first"
        )

    def content(name: str, limit: int) -> bytes:
        entry = entries[f"{root}/{name}"]
        if entry.size > limit:
            raise RefusedError(f"its {name} has {entry.size} bytes, expected at most {limit}")
        file.seek(entry.start)
        return file.read(entry.size)

    version = content("version", 16).strip()
    if not version.isdigit() or int(version) not in ZIP_VERSIONS:
        raise RefusedError(f"its version is {version!r}, expected {ZIP_VERSIONS[0]} to {ZIP_VERSIONS[-1]}")
    if f"{root}/byteorder" in entries and (order := content("byteorder", 16)) != b"little":
        raise RefusedError(_other_byte_order(order.decode(errors="replace")))
    pickled = content("data.pkl", MAX_PICKLE_BYTES)
    stream = io.BytesIO(pickled)
    value = PickleMachine(stream).load()
    if stream.tell() != len(pickled):
        raise RefusedError(f"its data.pkl goes on after the end of the pickle; {INCOMPLETE}")
    prefix = f"{root}/data/"
    return value, {
        name.removeprefix(prefix): (entry.start, entry.size)
        for name, entry in entries.items()
        if name.startswith(prefix)
    }


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, Ranges]:
    file.seek(0)
    stream = io.BytesIO(file.read(min(MAX_PICKLE_BYTES, size)))
    machine = PickleMachine(stream, view_metadata=True)
    magic, version, system, value, keys = (machine.load() for _ in range(5))
    if (type(magic), type(version)) != (int, int) or (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise RefusedError(f"its magic number or version is unknown, expected version {LEGACY_VERSION}; {INCOMPLETE}")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise RefusedError(_other_byte_order("big"))
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise RefusedError(f"its list of storages is damaged; {INCOMPLETE}")
    if len(set(keys)) != len(keys) or set(keys) != set(machine.storages):
        raise RefusedError(f"its list of storages does not fit the tensors; {INCOMPLETE}")
    ranges, position = {}, stream.tell()
    for key in keys:
        storage = machine.storages[key]
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little")
        start = position + 8
        if numel != storage.numel or start + storage.nbytes > size:
            raise RefusedError(
                f"storage {key[:40]!r} has {min(numel, size)} elements in {max(size - start, 0)} bytes, expected "
                f"{storage.numel} x {storage.dtype}; {INCOMPLETE}"
            )
        ranges[key] = start, storage.nbytes
        position = start + storage.nbytes
    if position != size:
        raise RefusedError(f"the file goes on for {size - position} bytes after the last storage; {INCOMPLETE}")
    return value, ranges


def _other_byte_order(found: str) -> str:
    return (
        f"its numbers are stored in the byte order {found!r}, expected 'little': load and save it with PyTorch "
        f"on a little-endian machine (x86 or ARM)"
    )


def write_pytorch(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a file that torch.load reads, also with weights_only=True, in PyTorch's zip format.

    The file appears under its name only when it is complete and on the disk. The same value always gives the same
    bytes. Arrays are written one after the other; only one whose values are not contiguous is copied for it.

    Args:
        path: the file; one that exists is replaced.
        value: dict, OrderedDict, list, tuple, set, str, bytes, int, float, bool, None and NumPy arrays of float64, 32,
            16, bfloat16, complex64, 128, int64, 32, 16, 8, uint8 or bool, which become tensors of the same shape and
            type. NumPy scalars become plain numbers.

    Raises:
        TypeError: the value contains anything else; says where.
        ValueError: it is nested too deeply, or too large for `read_pytorch`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    writer = PickleWriter()
    pickled = writer.dump(value)
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError(f"{path}: {len(pickled)} bytes of values besides tensors, expected at most {MAX_PICKLE_BYTES}")
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_entry(archive, "data.pkl", pickled)
        _write_entry(archive, "byteorder", b"little")
        for key, array in enumerate(writer.storages):
            little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            _write_entry(archive, f"data/{key}", little.reshape(-1).view(np.uint8).data)
        _write_entry(archive, "version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Writes an uncompressed entry whose data begin at a multiple of 64 bytes, as in PyTorch's own files."""
    info = zipfile.ZipInfo(f"{ROOT}/{name}")
    info.file_size = len(content)
    wide = len(content) >= 1 << 30  # sizes of 64 bits, which put 20 bytes more before the data
    header_end = archive.start_dir + 30 + len(info.filename) + (20 if wide else 0) + 4
    padding = -header_end % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=wide) as entry:
        for start in range(0, len(content), CHUNK_BYTES):
            entry.write(content[start : start + CHUNK_BYTES])
    info.extra = b""  # the space belongs before the data, not into the directory as well
