"""Checkpoint files as torch.save writes them, made without PyTorch and without the package's own writer."""

import argparse
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGE_CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class View(NamedTuple):
    """A tensor that looks into `base` (one-dimensional) with an offset and strides in elements."""

    base: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        strides = [stride * self.base.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(self.base[self.offset :], self.shape, strides)


class Parameter(NamedTuple):
    """A torch.nn.Parameter around a tensor."""

    data: np.ndarray


class Named(NamedTuple):
    """A call of something that PyTorch names, like torch.device("cuda", 1)."""

    module: str
    name: str
    arguments: tuple


class _Storage(NamedTuple):
    base: np.ndarray


class _Global(NamedTuple):
    module: str
    name: str

    def __call__(self) -> None:
        """Is never called; pickle asks whether it could be."""


class _Pickler(pickle._Pickler):
    def __init__(self, out: io.BytesIO, protocol: int, legacy: bool):
        super().__init__(out, protocol)
        self._legacy = legacy
        self.storages: list[np.ndarray] = []

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not _Storage:
            return None
        if not any(value.base is known for known in self.storages):
            self.storages.append(value.base)
        key = next(str(index) for index, known in enumerate(self.storages) if known is value.base)
        kind = _Global("torch", STORAGE_CLASSES[value.base.dtype.name])
        identity = ("storage", kind, key, "cpu", value.base.size)
        return (*identity, None) if self._legacy else identity

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _Global):
            return value.name
        if isinstance(value, np.ndarray):
            strides = [int(stride) // value.itemsize for stride in np.ascontiguousarray(value).strides]
            value = View(value.reshape(-1), 0, value.shape, tuple(strides[-value.ndim :] if value.ndim else ()))
        if isinstance(value, View):
            arguments = (_Storage(value.base), value.offset, value.shape, value.strides, False, OrderedDict())
            return _Global("torch._utils", "_rebuild_tensor_v2"), arguments
        if isinstance(value, Parameter):
            return _Global("torch._utils", "_rebuild_parameter"), (value.data, True, OrderedDict())
        if isinstance(value, Named):
            return _Global(value.module, value.name), value.arguments
        return NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if not isinstance(obj, _Global):
            super().save_global(obj, name)
        elif self.proto < 4:
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)


def pickled(value: Any, *, protocol: int = 2, legacy: bool = False) -> tuple[bytes, list[np.ndarray]]:
    """Returns the pickle of a value and its storages; arrays, View, Parameter and Named in it are PyTorch's."""
    out = io.BytesIO()
    pickler = _Pickler(out, protocol, legacy)
    pickler.dump(value)
    return out.getvalue(), pickler.storages


class _Stream(io.BytesIO):
    """Makes zipfile put sizes after the data, as PyTorch does."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation


def zip_of(entries: dict[str, bytes], *, descriptors: bool = True, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip file with these entries."""
    out = _Stream() if descriptors else io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return out.getvalue()


def zip_entries(data: bytes, storages: list[np.ndarray], root: str = "model.pth") -> dict[str, bytes]:
    """Returns the entries of a zip checkpoint with this pickle."""
    stored = {f"{root}/data/{index}": storage.tobytes() for index, storage in enumerate(storages)}
    return {f"{root}/data.pkl": data, f"{root}/byteorder": b"little", **stored, f"{root}/version": b"3\n"}


def zip_file(value: Any, *, protocol: int = 2) -> bytes:
    """Returns a value as a checkpoint in the zip format."""
    return zip_of(zip_entries(*pickled(value, protocol=protocol)))


def legacy_of(data: bytes, storages: list[np.ndarray], *, system: Any = SYSTEM, keys: Any = None) -> bytes:
    """Returns a checkpoint in the older format with this pickle."""
    keys = [str(index) for index in range(len(storages))] if keys is None else keys
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, VERSION, system))
    stored = b"".join(struct.pack("<q", storage.size) + storage.tobytes() for storage in storages)
    return head + data + pickle.dumps(keys, 2) + stored


def legacy_file(value: Any, *, protocol: int = 2) -> bytes:
    """Returns a value as a checkpoint in the format without zip."""
    return legacy_of(*pickled(value, protocol=protocol, legacy=True))


def sample() -> dict[str, Any]:
    """Returns a small checkpoint as the training script of the reference saves it, with every type of tensor."""
    random = np.random.default_rng(7)
    base = random.standard_normal(24).astype(np.float32)
    types = [name for name in STORAGE_CLASSES if name not in ("bfloat16", "bool")]
    tensors = {name: random.integers(0, 100, (2, 3)).astype(name) for name in types}
    tensors["bfloat16"] = random.standard_normal((3, 2)).astype(ml_dtypes.bfloat16)
    tensors["bool"] = np.array([True, False, True])
    model = OrderedDict(
        {f"module.{name}.weight": tensor for name, tensor in tensors.items()}
        | {
            "module.transposed": View(base, 2, (4, 2), (1, 4)),
            "module.shared": View(base, 8, (2, 2, 2), (8, 2, 1)),
            "module.expanded": View(base, 3, (5, 2), (0, 1)),
            "module.counter": np.array(12, np.int64),
            "module.empty": np.zeros((0, 3), np.float32),
            "module.parameter": Parameter(np.arange(4.0, dtype=np.float32)),
        }
    )
    group = {"lr": 0.01, "momentum": 0.9, "nesterov": False, "params": [0, 1], "betas": (0.9, -1), "foreach": None}
    return {
        "model": model,
        "optimizer": {"state": {0: {"momentum_buffer": base}}, "param_groups": [group]},
        "epoch": 3,
        "bestacc": np.float64(0.8125),
        "bytes": b"\x00\xff",
        "large": -(2**80),
        "names": {"a"},
        "args": argparse.Namespace(lr=0.1, lists=["train.txt"], seed=None),
        "device": Named("torch", "device", ("cuda", 1)),
        "size": Named("torch", "Size", ((2, 3),)),
    }


def plain_sample(value: Any, plain: Callable[[Any], Any] | None = None) -> Any:
    """Returns what reading `sample()` has to give; `plain` does the same for what is in a container."""
    plain = plain or plain_sample
    if isinstance(value, View):
        return value.array()
    if isinstance(value, Parameter):
        return value.data
    if isinstance(value, Named):
        return value.arguments[0]
    if isinstance(value, argparse.Namespace):
        return {}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return type(value)((key, plain(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return list(value) if isinstance(value, set) else value


def flat(value: Any, place: str = "") -> dict[str, tuple]:
    """Returns place -> (type, content) of every value in a tree, arrays bit by bit; an OrderedDict counts as a dict."""
    if isinstance(value, np.ndarray):
        return {place: ("array", str(value.dtype), value.shape, value.tobytes())}
    if isinstance(value, dict):
        items = {f"{place}/{key!r}": item for key, item in value.items()}
    elif type(value) in (list, tuple):
        items = {f"{place}/{index}": item for index, item in enumerate(value)}
    else:
        assert type(value) in (str, bytes, int, float, bool, type(None)), (place, type(value))
        return {place: (type(value).__name__, repr(value))}
    result: dict[str, tuple] = {place: (type(value).__name__.removeprefix("Ordered").lower(), len(items))}
    for inner, item in items.items():
        result |= flat(item, inner)
    return result
