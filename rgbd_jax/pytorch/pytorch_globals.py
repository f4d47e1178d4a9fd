"""The names that the pickle of a checkpoint may use, each with our own inert stand-in for it.

Nothing is ever imported or called by a name out of a file: a name that is not in this table is refused.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgbd_jax.pytorch.checkpoint_file import RefusedError
from rgbd_jax.pytorch.pytorch_tensor import DTYPES, STORAGE_DTYPES, Storage, Tensor

SCALAR_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


@dataclass(frozen=True, slots=True)
class Constructor:
    """A function that a pickle may name: what it is called there, and what we do instead of calling it."""

    name: str
    build: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class TorchDtype:
    """A torch.dtype."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageType:
    """The class of a storage."""

    dtype: np.dtype


@dataclass(slots=True)
class ScalarType:
    """The type of a NumPy scalar; its byte order comes by BUILD."""

    dtype: np.dtype

    def build(self, state: Any) -> None:
        """Takes the state of a plain NumPy dtype: version, byte order, then nothing that a plain type has."""
        plain = type(state) is tuple and len(state) >= 5 and all(part is None for part in state[2:5])
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise RefusedError("a numpy.dtype that is not one of a plain number")
        self.dtype = self.dtype.newbyteorder(state[1])


def require(condition: bool, name: str) -> None:
    """Raises RefusedError unless the arguments of the named constructor have the form that PyTorch writes."""
    if not condition:
        raise RefusedError(f"the pickle calls {name} with arguments of an unknown form; nothing was run")


def _whole_numbers(values: Any) -> bool:
    return type(values) is tuple and all(type(value) is int for value in values)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, hooks: Any = None,
    metadata: Any = None, *, dtype: np.dtype | None = None,
) -> Tensor:  # fmt: skip
    known = isinstance(storage, Storage) and type(offset) is int and _whole_numbers(shape) and _whole_numbers(strides)
    plain = type(requires_grad) is bool and not hooks and not metadata
    require(known and plain, "torch._utils._rebuild_tensor")
    return Tensor(storage, dtype or storage.dtype, offset, shape, strides)


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> Tensor:  # fmt: skip
    require(isinstance(dtype, TorchDtype), "torch._utils._rebuild_tensor_v3")
    return _tensor(storage, offset, shape, strides, requires_grad, hooks, metadata, dtype=DTYPES[dtype.name])


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None) -> Tensor:
    require(isinstance(data, Tensor) and type(requires_grad) is bool and not hooks, "torch._utils._rebuild_parameter")
    return data


def _device(kind: Any, index: Any = None) -> str:
    require(type(kind) is str and (index is None or type(index) is int), "torch.device")
    return kind if index is None else f"{kind}:{index}"


def _size(lengths: Any) -> tuple[int, ...]:
    require(_whole_numbers(lengths), "torch.Size")
    return lengths


def _set(members: Any = ()) -> set:
    require(type(members) in (list, tuple), "builtins.set")
    return {hashable(member) for member in members}


def _encode(text: Any, encoding: Any) -> bytes:
    require(type(text) is str and encoding == "latin1", "_codecs.encode")
    require(all(ord(character) < 256 for character in text), "_codecs.encode")
    return text.encode("latin1")


def _scalar_type(kind: Any, align: Any = False, copy: Any = True) -> ScalarType:
    require(type(kind) is str and align in (False, 0) and copy in (True, 1), "numpy.dtype")
    require(kind in SCALAR_TYPES, "numpy.dtype")
    return ScalarType(np.dtype(kind))


def _scalar(kind: Any, data: Any) -> bool | int | float:
    require(isinstance(kind, ScalarType) and type(data) is bytes and len(data) == kind.dtype.itemsize, "numpy scalar")
    return np.frombuffer(data, kind.dtype)[0].item()


def hashable(key: Any) -> Any:
    """Returns the key of a dict or member of a set, if it is of a kind that no file can make slow to hash.

    Raises:
        RefusedError: any other key (a list cannot be one; long integers and tuples can be chosen so that they collide).
    """
    if type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and abs(key) < 1 << 60):
        return key
    raise RefusedError(
        f"a key of a dict or a member of a set is a {type(key).__name__}; expected text, bytes or a number below 2^60"
    )


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: OrderedDict(),
    "builtins.set": _set,
    "__builtin__.set": _set,
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.device": _device,
    "torch.Size": _size,
    "numpy.dtype": _scalar_type,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}

GLOBALS: dict[str, Any] = (
    {name: Constructor(name, build) for name, build in CONSTRUCTORS.items()}
    | {f"torch.{name}": TorchDtype(name) for name in DTYPES}
    | {
        f"{module}.{name}": StorageType(DTYPES[dtype])
        for module in ("torch", "torch.storage")
        for name, dtype in STORAGE_DTYPES.items()
    }
)
