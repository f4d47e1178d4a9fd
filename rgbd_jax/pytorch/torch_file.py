"""Reads and writes the files of `torch.save` without PyTorch; nothing that a file names is ever imported or run.

Both of PyTorch's formats, the zip archive and the older stream, hold a pickle of the value and, beside it, "storages":
the memory that tensors are views of. `pickletools` takes a pickle apart; the loop in `_unpickle` knows the instructions
of plain data alone, and calls nothing but the functions of `GLOBALS`.
"""

import io
import itertools
import math
import mmap
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401, gives NumPy the type bfloat16
import numpy as np

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.pytorch.names import ConversionError

MAX_PICKLE_BYTES = 8 << 20  # a network of 1,000 tensors with its optimizer takes 1 MB
MAX_VALUES, MAX_DEPTH = 250_000, 64
MAX_EXPANSION, FREE_BYTES = 8, 1 << 20  # all tensors together may be so many times the file, and so much larger
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
INCOMPLETE = "the file is damaged or incomplete: download or copy it again and compare its size"
TRUSTED_WAY = (
    "nothing was run. If you trust the file, load it with PyTorch elsewhere and save only what is needed: "
    "torch.save(torch.load(path, weights_only=False)['model'], new_path)"
)


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
    if type(text) is not str or encoding != "latin1":
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
TAKEN = {"APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}  # instruction -> values it takes
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _unpickle(stream: BinaryIO, storage_data: Callable[[str, np.dtype, int], np.ndarray]) -> Any:
    """Returns the value of the pickle that begins here; `storage_data` gives a storage's memory by key, type and size.

    This is a loop of our own because Python's unpicklers hash whatever a file makes a key (of nested tuples that
    crashes or never ends), set any attribute that it names, and size their memo by its numbers.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stack below each mark
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        name, items = opcode.name, []
        if name in ("APPENDS", "ADDITEMS", "SETITEMS", "TUPLE"):
            items, stack = stack, outer.pop()
        elif name in TAKEN:
            items = [stack.pop() for _ in range(TAKEN[name])][::-1]
        match name:
            case "PROTO" | "FRAME":
                pass
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(arg)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(arg)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[name])
            case "MARK":
                outer.append(stack)
                stack = []
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(items))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "APPEND" | "APPENDS" | "ADDITEMS":
                _expect(list, stack[-1], "appends to")
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                _expect(dict, stack[-1], "sets an item of")
                stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_global(arg.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                _expect(str, module, "names")
                _expect(str, attribute, "names")
                stack.append(_global(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(function(*arguments))
            case "BUILD":  # dropped: PyTorch's `_metadata` of an OrderedDict, what is in a Namespace
                state = stack.pop()
                if not (isinstance(stack[-1], np.dtype) and state[1] in ("<", "|")):
                    _expect(dict, stack[-1], "sets the state of")
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storage_data))
            case "STOP":
                return stack.pop()
            case _:
                raise ConversionError(f"its pickle uses the instruction {name}; {TRUSTED_WAY}")


def _expect(kind: type, value: Any, action: str) -> None:
    if type(value) is not kind:
        raise ConversionError(
            f"its pickle {action} a {type(value).__name__}, expected a {kind.__name__}; {TRUSTED_WAY}"
        )


def _global(name: str) -> Any:
    if name not in GLOBALS:
        raise ConversionError(f"its pickle names {name[:120]!a}, not a tensor or plain value; {TRUSTED_WAY}")
    return GLOBALS[name]


def _key(key: Any) -> Any:
    # A file can choose tuples that crash whoever hashes them, or never end, and long integers that collide.
    if type(key) not in (str, bytes, float, bool, int, type(None)) or (type(key) is int and abs(key) >> 60):
        raise ConversionError(f"a key of a dict is a {type(key).__name__}; expected text or a number below 2^60")
    return key


def _storage(identity: Any, storage_data: Callable[[str, np.dtype, int], np.ndarray]) -> Storage:
    kind, dtype, key, _, numel, *view = identity  # a view of another storage was last written by PyTorch 0.3
    known = (kind, type(key), type(numel)) == ("storage", str, int) and isinstance(dtype, np.dtype) and not any(view)
    if not known or numel < 0:
        raise ConversionError("its pickle describes a storage in an unknown way")
    return Storage(storage_data(key, dtype, numel), dtype)


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Returns what a file written by `torch.save` holds, in the zip format or the older one.

    Containers, text, bytes, numbers, truth values and None come as they are (an OrderedDict as a dict), tensors and
    parameters as arrays of the same shape and type (bfloat16 of ml_dtypes). The arrays of a zip file are read-only and
    look into the file: they cost no memory until used, and the file must not be overwritten in place meanwhile.

    The entries of a zip file are checked against their CRC-32. The older format has no checksum: there a changed byte
    is noticed where it breaks the structure, not in the values of a tensor, a number or a text.

    Raises:
        Exception: it is damaged, or (ConversionError) holds anything else.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        value = _read_zip(file) if file.read(2) == b"PK" else _read_legacy(file, size)
    _check_extent(value, size)
    return value


def _read_zip(file: BinaryIO) -> Any:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
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
        if damaged := archive.testzip():
            raise ConversionError(f"its entry {damaged!r} does not match its checksum (CRC-32); {INCOMPLETE}")
        _check_byte_order(f"{root}/byteorder" not in entries or archive.read(f"{root}/byteorder") == b"little")
        if entries[f"{root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise ConversionError(f"its data.pkl has more than {MAX_PICKLE_BYTES} bytes")
        stream = io.BytesIO(archive.read(f"{root}/data.pkl"))

    def storage_data(key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        entry = entries.get(f"{root}/data/{key}")
        if entry is None or entry.file_size != numel * dtype.itemsize:
            found = f"has {entry.file_size} bytes" if entry else "is missing"
            raise ConversionError(f"storage {key[:40]!r} {found}, expected {numel} x {dtype}; {INCOMPLETE}")
        lengths = struct.unpack_from("<HH", mapped, entry.header_offset + 26)  # of the name and what follows it
        return np.frombuffer(mapped, np.uint8, entry.file_size, entry.header_offset + 30 + sum(lengths))

    return _unpickle(stream, storage_data)


def _read_legacy(file: BinaryIO, size: int) -> Any:
    storages: dict[str, tuple[int, np.ndarray]] = {}
    free = size

    def storage_data(key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        nonlocal free
        if key not in storages:
            free -= numel * dtype.itemsize
            if free < 0:
                raise ConversionError(f"storage {key[:40]!r}, {numel} x {dtype}, exceeds the file; {INCOMPLETE}")
            storages[key] = numel, np.empty(numel * dtype.itemsize, np.uint8)
        return storages[key][1]

    file.seek(0)
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    magic, version, system, value, keys = (_unpickle(stream, storage_data) for _ in range(5))
    listed = all(type(key) is str for key in keys) and sorted(keys) == sorted(storages)
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION) or not listed:
        raise ConversionError(f"its magic number, version or list of storages is damaged; {INCOMPLETE}")
    _check_byte_order(system["little_endian"] is True)
    file.seek(stream.tell())
    for key in keys:  # their values follow the pickles
        numel, data = storages[key]
        found = int.from_bytes(file.read(8), "little")
        if found != numel or file.readinto(data) != data.size:  # type: ignore[attr-defined]
            raise ConversionError(f"storage {key[:40]!r} does not have {numel} elements; {INCOMPLETE}")
    if file.read(1):
        raise ConversionError(f"the file goes on after the last storage; {INCOMPLETE}")
    return value


def _check_byte_order(little: bool) -> None:
    if not little:
        raise ConversionError(
            "its numbers are stored in the byte order 'big', expected 'little': load and save it with PyTorch on a "
            "little-endian machine (x86 or ARM)"
        )


def _check_extent(value: Any, file_size: int) -> None:
    """Refuses what is small in a file and huge or endless for whoever walks it: shared lists, cycles, expanded tensors.

    Shared values count as often as they occur.
    """
    level, count, nbytes = [value], 1, 0
    for _ in range(MAX_DEPTH + 1):
        nbytes += sum(item.nbytes for item in level if isinstance(item, np.ndarray))
        inside = (item.values() if type(item) is dict else item for item in level if type(item) in (dict, list, tuple))
        level = list(itertools.islice(itertools.chain.from_iterable(inside), MAX_VALUES + 1 - count))
        count += len(level)
    if level or count > MAX_VALUES:
        raise ConversionError(f"its values are nested deeper than {MAX_DEPTH}, or are more than {MAX_VALUES}")
    if nbytes > MAX_EXPANSION * file_size + FREE_BYTES:
        raise ConversionError(
            f"its tensors are more than {MAX_EXPANSION} times as large as the file: expanded tensors (stride 0) or "
            "views of one storage; save contiguous copies (tensor.contiguous()) instead"
        )


def write_torch(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a file that `torch.load` reads, also with weights_only=True, in PyTorch's zip format.

    A file that exists is replaced when the new one is complete. NumPy arrays among the containers, text and numbers
    become tensors of the same shape and type; one that occurs twice is stored once.

    Raises:
        ConversionError: an array has a type that PyTorch lacks.
    """
    storages: dict[int, np.ndarray] = {}
    data = pickle.PROTO + b"\x02" + _instructions(value, storages) + pickle.STOP
    with atomic_write(Path(path)) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        _write_entry(archive, "data.pkl", data)
        _write_entry(archive, "byteorder", b"little")
        for key, array in enumerate(storages.values()):
            little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            _write_entry(archive, f"data/{key}", little.reshape(-1).view(np.uint8).data)
        _write_entry(archive, "version", b"3\n")


def _instructions(value: Any, storages: dict[int, np.ndarray]) -> bytes:
    """Returns the part of a pickle that builds a value, and adds the value's arrays to `storages`, by their id.

    This does not leave it to Python's pickler because that imports whatever it names.
    """

    def all_of(values: Iterable[Any]) -> bytes:
        return pickle.MARK + b"".join(_instructions(item, storages) for item in values)

    if isinstance(value, dict):
        empty = b"ccollections\nOrderedDict\n)R" if isinstance(value, OrderedDict) else pickle.EMPTY_DICT
        return empty + all_of(itertools.chain.from_iterable(value.items())) + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + all_of(value) + pickle.APPENDS
    if isinstance(value, np.dtype):
        return f"ctorch\n{STORAGE_NAMES[value]}\n".encode()
    if isinstance(value, Storage):
        storages[id(value.data)] = value.data
        key = str(list(storages).index(id(value.data)))
        return all_of(("storage", value.dtype, key, "cpu", value.data.size)) + pickle.TUPLE + pickle.BINPERSID
    if isinstance(value, tuple):
        return all_of(value) + pickle.TUPLE
    if not isinstance(value, np.ndarray):
        return pickle.dumps(value, protocol=2)[2:-1]  # without its start and end
    if (dtype := value.dtype.newbyteorder("=")) not in STORAGE_NAMES:
        raise ConversionError(f"PyTorch has no tensors of {dtype}, expected {', '.join(STORAGE_TYPES.values())}")
    lengths = [max(length, 1) for length in value.shape]
    strides = tuple(math.prod(lengths[axis + 1 :]) for axis in range(value.ndim))
    view = all_of((Storage(value, dtype), 0, value.shape, strides, False, OrderedDict()))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + view + pickle.TUPLE + pickle.REDUCE


def _write_entry(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Writes an entry whose data begin at a multiple of 64 bytes, as in PyTorch's own files, which it maps."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    padding = -(archive.start_dir + 30 + len(entry.filename) + 4) % 64
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, content)
    entry.extra = b""  # the space belongs before the data, not into the directory as well
