"""Tensors as a PyTorch file describes them, and as arrays that look into the file without copying it."""

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from rgbd_jax.pytorch.checkpoint_file import RefusedError

MAX_DIMENSIONS = 32
# Expanded tensors (stride 0) and views that share a storage make the values larger than the file. Real checkpoints
# hardly do that; a small file that asks for terabytes does.
MAX_EXPANSION = 8
FREE_BYTES = 1 << 20

DTYPES = {
    name: np.dtype(name)
    for name in (
        "float64", "float32", "float16", "complex64", "complex128", "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool",
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A piece of memory that tensors look into, or a part of one.

    Args:
        key: its name in the file.
        dtype: type of its elements.
        numel: how many elements the whole storage has.
        first: the first element of the part.
        length: how many elements the part has.
    """

    key: str
    dtype: np.dtype
    numel: int
    first: int
    length: int

    def __post_init__(self) -> None:
        if not (min(self.first, self.length) >= 0 and self.first + self.length <= self.numel < 1 << 60):
            raise RefusedError(
                f"storage {self.key[:40]!r}: elements {self.first} to {self.first + self.length} of {self.numel} do "
                f"not exist"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        available = self.storage.length * self.storage.dtype.itemsize // self.dtype.itemsize
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=False))
        fits = (
            len(self.shape) == len(self.strides) <= MAX_DIMENSIONS
            and all(0 <= number < 1 << 58 for number in (*self.shape, *self.strides, self.offset))
            and math.prod(max(length, 1) for length in self.shape) < 1 << 58
            and (self.offset <= available if 0 in self.shape else self.offset + last < available)
        )
        if not fits:
            raise RefusedError(
                f"a tensor of shape {str(self.shape)[:80]}, strides {str(self.strides)[:80]} and offset {self.offset} "
                f"does not lie within its storage {self.storage.key[:40]!r} of {available} elements"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorViews:
    """Makes read-only arrays that look into a mapped file; no value is copied.

    Args:
        mapped: the file.
        ranges: storage key -> its first byte in the file and its number of bytes.
    """

    def __init__(self, mapped: mmap.mmap, ranges: Mapping[str, tuple[int, int]]):
        self._mapped = mapped
        self._ranges = ranges
        self._arrays: dict[int, tuple[Tensor, np.ndarray]] = {}  # by id, which the tensor kept beside it makes unique
        self._bytes_left = MAX_EXPANSION * len(mapped) + FREE_BYTES

    def array(self, tensor: Tensor) -> np.ndarray:
        """Returns the array of a tensor; the same object gives the same array.

        Raises:
            RefusedError: the storage is missing, has another size, or all tensors together are far larger than the
                file.
        """
        if id(tensor) not in self._arrays:
            self._arrays[id(tensor)] = tensor, self._view(tensor)
        return self._arrays[id(tensor)][1]

    def _view(self, tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in self._ranges:
            raise RefusedError(f"the data of storage {storage.key[:40]!r} is missing; the file is incomplete")
        start, nbytes = self._ranges[storage.key]
        if nbytes != storage.nbytes:
            raise RefusedError(
                f"storage {storage.key[:40]!r} has {nbytes} bytes, expected {storage.numel} x {storage.dtype} = "
                f"{storage.nbytes} bytes"
            )
        self._bytes_left -= tensor.nbytes
        if self._bytes_left < 0:
            raise RefusedError(
                f"its tensors are more than {MAX_EXPANSION} times as large as the file: expanded tensors (stride 0) or "
                f"views of one storage; save contiguous copies (tensor.contiguous()) instead"
            )
        if 0 in tensor.shape:
            array = np.empty(tensor.shape, tensor.dtype)
        else:
            array = np.ndarray(
                tensor.shape,
                tensor.dtype,
                buffer=self._mapped,
                offset=start + storage.first * storage.dtype.itemsize + tensor.offset * tensor.dtype.itemsize,
                strides=[stride * tensor.dtype.itemsize for stride in tensor.strides],
            )
        if tensor.dtype == bool and array.size and array.view(np.uint8).max() > 1:
            raise RefusedError(f"storage {storage.key[:40]!r} of truth values holds bytes other than 0 and 1")
        return array
