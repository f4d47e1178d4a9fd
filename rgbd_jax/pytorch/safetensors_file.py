"""Reads and writes safetensors files."""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.pytorch.checkpoint_file import RefusedError, format_of, naming
from rgbd_jax.pytorch.pytorch_tensor import DTYPES

METADATA = "__metadata__"
TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns (name -> array, metadata) of a safetensors file.

    The arrays are read-only and look into the file: they cost no memory until used, and the file must not be
    overwritten in place while they are in use. The format has no checksum: a changed byte among the values of a
    tensor or in a name is not noticed.

    Args:
        path: the file; its name and ending do not matter.

    Raises:
        CheckpointFileError: the file is damaged, of another format, or has tensors of a type that NumPy lacks.
        OSError: the file is missing or unreadable.
    """
    path = Path(path)
    with naming(path), path.open("rb") as file:
        start = file.read(512)
        found = format_of(start, os.fstat(file.fileno()).st_size)
        if found != "safetensors":
            raise RefusedError("a file of PyTorch, not safetensors: read it with read_pytorch")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # The library checks the header (sizes, types, no gaps or overlaps) but would copy every tensor; the values lie
        # in the order of offset_keys right after the header, so they can be looked at where they are.
        try:
            with safe_open(path, framework="np") as checked:
                metadata = dict(checked.metadata() or {})
                slices = [(name, checked.get_slice(name)) for name in checked.offset_keys()]
                described = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices]
        except SafetensorError as error:
            raise RefusedError(f"not a sound safetensors file ({error}): download or copy it again") from error
        tensors, position = {}, 8 + int.from_bytes(start[:8], "little")
        for name, kind, shape in described:
            if kind not in TYPES:
                raise RefusedError(f"the tensor {name[:80]!r} is of type {kind}, expected one of {', '.join(TYPES)}")
            try:
                array = np.ndarray(shape, DTYPES[TYPES[kind]], buffer=mapped, offset=position)
            except ValueError as error:
                raise RefusedError(f"the tensor {name[:80]!r} cannot be of shape {str(shape)[:80]}: {error}") from error
            if kind == "BOOL" and array.size and array.view(np.uint8).max() > 1:
                raise RefusedError(f"the tensor {name[:80]!r} of truth values holds bytes other than 0 and 1")
            tensors[name] = array
            position += array.nbytes
        return tensors, metadata


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, which appears under its name only when it is complete and on the disk.

    Args:
        path: the file; one that exists is replaced.
        tensors: name -> array, of any type that `read_safetensors` reads. Those whose values are not contiguous are
            copied for it.
        metadata: text by name, kept in the file's header.

    Raises:
        TypeError: an array has a type that the format lacks, or metadata is not text.
        ValueError: a tensor has the one name that the format keeps for itself.
        OSError: the file cannot be written.
    """
    path = Path(path)
    known = {DTYPES[name] for name in TYPES.values()}
    for name, array in tensors.items():
        if name == METADATA:
            raise ValueError(f"a tensor cannot be named {METADATA}, which is where the format keeps its metadata")
        if array.dtype.newbyteorder("=") not in known:
            raise TypeError(f"{name} is an array of {array.dtype}, expected one of {', '.join(map(str, known))}")
    # The library takes the memory as it lies, so a transposed array would be stored wrongly without this.
    contiguous = {name: np.asarray(array, array.dtype.newbyteorder("="), order="C") for name, array in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            # None, since safetensors 0.8 writes a header that it cannot read for no tensors with empty metadata.
            save_file(contiguous, temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
