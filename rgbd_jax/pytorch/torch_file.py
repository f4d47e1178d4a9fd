"""Reads and writes the files of `torch.save` without PyTorch; nothing that a file names is ever imported or run.

Both of PyTorch's formats, the zip archive and the older stream, hold a pickle of the value and, beside it, "storages":
the memory that tensors are views of.
"""

import functools
import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes  # noqa: F401, gives NumPy the type bfloat16
import numpy as np

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.models.name_table import ConversionError

MAX_PICKLE_BYTES = 8 << 20  # a network of 1,000 tensors with its optimizer takes 1 MB
# The older format begins with a pickle, of protocol 2 to 5, of the number 0x1950a86a20f9469cfc6c.
LEGACY_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.", re.DOTALL)
INCOMPLETE = "the file is damaged or incomplete: download or copy it again and compare its size"
TRUSTED_WAY = (
    "nothing was run. If you trust the file, load it with PyTorch elsewhere and save only what is needed: "
    "torch.save(torch.load(path, weights_only=False)['model'], new_path)"
)
StorageLoader = Callable[[str, np.dtype, int], np.ndarray]  # key, type and number of elements -> bytes


class Storage(NamedTuple):
    """The bytes that tensors are views of, and the type of their elements."""

    data: np.ndarray
    dtype: np.dtype


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = None, metadata: Any = None
) -> np.ndarray:
    """Returns an array that looks into a storage, never beyond it; offset and strides count elements."""
    known = type(storage) is Storage and type(size) is type(stride) is tuple and not metadata
    if not known or any(type(number) is not int for number in (offset, *size, *stride)):
        raise ConversionError("its pickle describes a tensor in an unknown way")
    data, dtype = storage
    count = data.size // dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(0, offset, *size, *stride) < 0 or (offset > count if 0 in size else last >= count):
        raise ConversionError(
            f"a tensor of shape {str(size)[:80]}, strides {str(stride)[:80]} and offset {str(offset)[:20]} does not "
            f"lie within its storage of {count} elements"
        )
    if 0 in size:
        return np.empty(size, dtype)
    steps = [dtype.itemsize * (step if length > 1 else 1) for length, step in zip(size, stride, strict=True)]
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)


def _number_type(kind: str, *_: Any) -> np.dtype:
    if not re.fullmatch("b1|[iu][1248]|f[248]", kind):
        raise ConversionError("its pickle names a numpy.dtype that is not one of a plain number")
    return np.dtype(kind)


def _number(dtype: np.dtype, data: bytes) -> bool | int | float:
    return np.frombuffer(data, dtype)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    if type(encoding) is not str or encoding != "latin1":
        raise ConversionError("its pickle encodes text in an unknown way")
    return text.encode("latin1")


STORAGE_TYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
STORAGE_NAMES = {np.dtype(dtype): f"{name}Storage" for name, dtype in STORAGE_TYPES.items()}
# What a pickle may name, and what stands in for it. What no network needs becomes the simplest thing there is: an
# argparse.Namespace an empty dict, a set a list, a device its kind.
GLOBALS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": lambda storage, *view: _tensor(Storage(storage.data, view[5]), *view[:5]),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda lengths: lengths,
    "torch.device": lambda kind, *_: kind,
    "torch.storage.UntypedStorage": np.dtype("uint8"),
    "collections.OrderedDict": lambda: {},
    "argparse.Namespace": lambda: {},
    "builtins.set": lambda members=(): members,
    "__builtin__.set": lambda members=(): members,
    "__builtin__.bytes": lambda: b"",
    "_codecs.encode": _bytes,
    "numpy.dtype": _number_type,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
    **{f"torch.{name}": np.dtype(name) for name in (*STORAGE_TYPES.values(), "uint16", "uint32", "uint64")},
    **{f"torch.{name}": dtype for dtype, name in STORAGE_NAMES.items()},
}
INSTRUCTIONS = (
    "PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID BINPUT LONG_BINPUT MEMOIZE BINGET "
    "LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "EMPTY_SET ADDITEMS"
)


class _Instructions(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> None:
        raise ConversionError(f"its pickle uses the instruction {bytes([code])!r}; {TRUSTED_WAY}")


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with the instructions of plain data alone; it calls nothing but the functions of `GLOBALS`.

    Its twin in C would not do: that hashes whatever a file makes a key (of nested tuples this crashes or never ends),
    sets any attribute that it names, and sizes its memo by its numbers.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch = _Instructions(
        (code, pickle._Unpickler.dispatch[code]) for (code,) in (getattr(pickle, name) for name in INSTRUCTIONS.split())
    )

    def __init__(self, stream: BinaryIO, load_storage: StorageLoader):
        super().__init__(stream)
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (full_name := f"{module}.{name}") not in GLOBALS:
            raise ConversionError(f"its pickle names {full_name[:120]!a}, not a tensor or plain value; {TRUSTED_WAY}")
        return GLOBALS[full_name]

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage that the pickle describes; a view of another one was last written by PyTorch 0.3."""
        match pid:
            case (str("storage"), np.dtype() as dtype, str(key), _, int(numel), *view) if numel >= 0 and not any(view):
                return Storage(self._load_storage(key, dtype, numel), dtype)
        raise ConversionError("its pickle describes a storage in an unknown way")

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise ConversionError("its pickle calls a function in an unknown way")
        self.stack.append(function(*arguments))

    def _build(self) -> None:
        state = self.stack.pop()  # dropped: PyTorch's `_metadata` of an OrderedDict, what is in a Namespace
        if isinstance(self.stack[-1], np.dtype):
            _check_byte_order(type(state[1]) is str and state[1] in "<|")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key], [value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._update(items[::2], items[1::2])

    def _update(self, keys: list[Any], values: list[Any]) -> None:
        for key in keys:
            # A file can choose tuples that crash whoever hashes them, or never end, and long integers that collide.
            if type(key) not in (str, bytes, float, bool, int, type(None)) or (type(key) is int and abs(key) >> 60):
                kind = type(key).__name__
                raise ConversionError(f"a key of a dict is a {kind}; expected text or a number below 2^60")
        self.stack[-1].update(zip(keys, values, strict=True))

    dispatch |= {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.EMPTY_SET[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: pickle._Unpickler.dispatch[pickle.APPENDS[0]],
    }


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Returns what a file written by `torch.save` holds, in the zip format or the older one.

    Containers, text, bytes, numbers, truth values and None come as they are (an OrderedDict as a dict), tensors and
    parameters as arrays of the same shape and type (bfloat16 of ml_dtypes). The file is read, not mapped: if it shrinks
    meanwhile, or its disk goes away, that is an error, where a mapped file would end the process.

    What is read of a zip file is checked against its CRC-32. The older format has no checksum: there a changed byte is
    noticed where it breaks the structure, not in the values of a tensor, a number or a text.

    Raises:
        Exception: it is damaged, or (ConversionError) holds anything else.
    """
    with Path(path).open("rb") as file:
        return _read_zip(file) if file.read(2) == b"PK" else _read_legacy(file)


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = min(entries, default="").split("/")[0]
        if f"{root}/data.pkl" not in entries or f"{root}/constants.pkl" in entries:
            found = ", ".join(map(repr, sorted(entries)[:4]))[:200]
            raise ConversionError(
                f"a zip archive that torch.save did not write; found {found}. If the checkpoint is inside, unpack it "
                "first; of a TorchScript archive save the weights: torch.save(torch.jit.load(path).state_dict(), path)"
            )
        if packed := [n for n, e in entries.items() if e.compress_type or e.compress_size != e.file_size]:
            raise ConversionError(
                f"its entry {packed[0]!r} is compressed, which PyTorch never does: unpack the archive and pack it "
                "again uncompressed (zip -0 -r)"
            )
        if sum(entry.file_size for entry in entries.values()) > os.fstat(file.fileno()).st_size:
            raise ConversionError(f"its entries are larger than the file; {INCOMPLETE}")
        _check_byte_order(f"{root}/byteorder" not in entries or archive.read(f"{root}/byteorder") == b"little")
        if entries[f"{root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise ConversionError(f"its data.pkl has more than {MAX_PICKLE_BYTES} bytes")

        @functools.cache
        def content(name: str) -> np.ndarray:
            return np.frombuffer(archive.read(name), np.uint8)

        def load_storage(key: str, dtype: np.dtype, numel: int) -> np.ndarray:
            entry = entries.get(name := f"{root}/data/{key}")
            if entry is None or entry.file_size != numel * dtype.itemsize:
                found = f"has {entry.file_size} bytes" if entry else "is missing"
                raise ConversionError(f"storage {key[:40]!r} {found}, expected {numel} x {dtype}; {INCOMPLETE}")
            return content(name)

        return _Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl")), load_storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    storages: dict[str, tuple[int, np.ndarray]] = {}
    free = size = os.fstat(file.fileno()).st_size

    def load_storage(key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        nonlocal free
        if key not in storages:
            free -= numel * dtype.itemsize
            if free < 0:
                raise ConversionError(f"storage {key[:40]!r}, {numel} x {dtype}, exceeds the file; {INCOMPLETE}")
            storages[key] = numel, np.empty(numel * dtype.itemsize, np.uint8)
        return storages[key][1]

    file.seek(0)
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    _magic, _version, system, value, keys = (_Unpickler(stream, load_storage).load() for _ in range(5))
    if type(keys) is not list or {type(key) for key in keys} - {str} or sorted(keys) != sorted(storages):
        raise ConversionError(f"its list of storages is damaged; {INCOMPLETE}")
    _check_byte_order(system["little_endian"] is True)
    file.seek(stream.tell())
    for key in keys:  # their values follow the pickles
        numel, data = storages[key]
        found = int.from_bytes(file.read(8), "little")
        if found != numel or file.readinto(data) != data.size:  # type: ignore[attr-defined]
            raise ConversionError(f"storage {key[:40]!r} does not have {numel} elements; {INCOMPLETE}")
    if file.read(1):
        raise ConversionError(f"the file continues after the last storage; {INCOMPLETE}")
    return value


def _check_byte_order(little: bool) -> None:
    if not little:
        raise ConversionError(
            "its numbers are stored in the byte order 'big', expected 'little': load and save it with PyTorch on a "
            "little-endian machine (x86 or ARM)"
        )


class _Pickler(pickle._Pickler):
    """Python's pickler, which writes arrays as tensors; PyTorch's functions are named, not imported."""

    write: Callable[[bytes], None]
    save: Callable[[Any], None]
    memoize: Callable[[Any], None]
    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, stream: BinaryIO):
        super().__init__(stream, protocol=2)
        self.storages: list[np.ndarray] = []

    def _save_array(self, array: np.ndarray) -> None:
        if array.dtype not in STORAGE_NAMES:
            expected = ", ".join(STORAGE_TYPES.values())
            raise ConversionError(f"PyTorch has no tensors of {array.dtype}, expected {expected}")
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.MARK)
        self.save("storage")
        self.write(f"ctorch\n{STORAGE_NAMES[array.dtype]}\n".encode())
        for place in (str(len(self.storages)), "cpu", array.size):
            self.save(place)
        self.write(pickle.TUPLE + pickle.BINPERSID)
        view: tuple[Any, ...] = (0, array.shape, strides, False, OrderedDict())
        for part in view:
            self.save(part)
        self.write(pickle.TUPLE + pickle.REDUCE)
        self.memoize(array)
        self.storages.append(array)

    dispatch[np.ndarray] = _save_array


def write_torch(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a file that `torch.load` reads, also with weights_only=True, in PyTorch's zip format.

    A file that exists is replaced when the new one is complete. NumPy arrays among the containers, text and numbers
    become tensors of the same shape and type; one that occurs twice is stored once.

    Raises:
        ConversionError: an array has a type that PyTorch lacks.
    """
    pickler = _Pickler(stream := io.BytesIO())
    pickler.dump(value)
    with atomic_write(Path(path)) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        _write_entry(archive, "data.pkl", stream.getvalue())
        _write_entry(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.storages):
            _write_entry(archive, f"data/{key}", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _write_entry(archive, "version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Writes an entry whose data begin at a multiple of 64 bytes, as in PyTorch's own files, which it maps."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    padding = -(archive.start_dir + 30 + len(entry.filename) + 4) % 64
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, content)
    entry.extra = b""  # the space belongs before the data, not into the directory as well
