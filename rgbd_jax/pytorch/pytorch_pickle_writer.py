"""Writes the pickle of a PyTorch checkpoint: plain containers, and tensors whose values lie in storages beside it."""

import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np

from rgbd_jax.pytorch.checkpoint_file import RefusedError
from rgbd_jax.pytorch.pytorch_globals import hashable
from rgbd_jax.pytorch.pytorch_tensor import DTYPES, STORAGE_DTYPES
from rgbd_jax.pytorch.pytorch_values import MAX_DEPTH

STORAGE_NAMES = {DTYPES[dtype]: name for name, dtype in reversed(STORAGE_DTYPES.items())}
EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


class PickleWriter:
    """Builds a pickle of protocol 2, which torch.load reads, also with weights_only=True.

    Attributes:
        storages: the arrays whose values are to be stored under data/0, data/1, ..., in this order. An array that
            occurs several times is stored once.
    """

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []
        self._keys: dict[int, str] = {}
        self._out = bytearray()

    def dump(self, value: Any) -> bytes:
        """Returns the pickle of the value.

        Args:
            value: dict, OrderedDict, list, tuple, set, str, bytes, int, float, bool, None, NumPy scalars and arrays of
                a type that PyTorch has, nested at most MAX_DEPTH deep.

        Raises:
            TypeError: the value contains anything else.
            ValueError: it is nested too deeply or contains itself, or a key or number is too large.
        """
        self._out += pickle.PROTO + b"\x02"
        self._write(value, "value", 0)
        self._out += pickle.STOP
        return bytes(self._out)

    def _write(self, value: Any, place: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"{place[:200]}: nested deeper than {MAX_DEPTH}")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            self._out += {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        elif isinstance(value, int):
            self._integer(value, place)
        elif isinstance(value, float):
            self._out += pickle.BINFLOAT + struct.pack(">d", value)
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, bytes):
            self._out += b"c_codecs\nencode\n"
            self._text(value.decode("latin1"))
            self._text("latin1")
            self._out += pickle.TUPLE2 + pickle.REDUCE
        elif isinstance(value, np.ndarray):
            self._array(value, place)
        elif isinstance(value, dict):
            self._out += EMPTY_ORDERED_DICT if isinstance(value, OrderedDict) else pickle.EMPTY_DICT
            self._out += pickle.MARK
            for key, item in value.items():
                self._write(self._key(key, place), place, depth + 1)
                self._write(item, f"{place}[{key!r}]", depth + 1)
            self._out += pickle.SETITEMS
        elif isinstance(value, list):
            self._out += pickle.EMPTY_LIST + pickle.MARK
            self._items(value, place, depth)
            self._out += pickle.APPENDS
        elif isinstance(value, tuple):
            self._out += pickle.MARK
            self._items(value, place, depth)
            self._out += pickle.TUPLE
        elif isinstance(value, set):
            self._out += b"c__builtin__\nset\n" + pickle.EMPTY_LIST + pickle.MARK
            # Sorted, since the order of a set is another in every process.
            members = sorted((self._key(member, place) for member in value), key=lambda x: (type(x).__name__, repr(x)))
            self._items(members, place, depth)
            self._out += pickle.APPENDS + pickle.TUPLE1 + pickle.REDUCE
        else:
            raise TypeError(
                f"{place[:200]} is a {type(value).__module__}.{type(value).__qualname__}, expected plain containers, "
                f"text, numbers or NumPy arrays (numpy.asarray turns other arrays into one)"
            )

    def _items(self, items: list | tuple, place: str, depth: int) -> None:
        for index, item in enumerate(items):
            self._write(item, f"{place}[{index}]", depth + 1)

    def _key(self, key: Any, place: str) -> Any:
        key = key.item() if isinstance(key, np.generic) else key
        try:
            return hashable(key)
        except RefusedError as error:
            raise TypeError(f"{place[:200]}: {error}") from None

    def _integer(self, value: int, place: str) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self._out += pickle.BININT + struct.pack("<i", value)
            return
        encoded = pickle.encode_long(value)
        if len(encoded) > 255:
            raise ValueError(f"{place[:200]}: an integer of {len(encoded)} bytes, expected at most 255")
        self._out += pickle.LONG1 + bytes([len(encoded)]) + encoded

    def _text(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self._out += pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded

    def _array(self, array: np.ndarray, place: str) -> None:
        native = array.dtype.newbyteorder("=")
        if native not in STORAGE_NAMES:
            expected = ", ".join(str(dtype) for dtype in STORAGE_NAMES)
            raise TypeError(f"{place[:200]} is an array of {array.dtype}, expected one of {expected}")
        if id(array) not in self._keys:
            self._keys[id(array)] = str(len(self.storages))
            self.storages.append(array)
        strides, step = [], 1
        for length in reversed(array.shape):
            strides.append(step)
            step *= max(length, 1)
        self._out += b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.MARK
        self._text("storage")
        self._out += b"ctorch\n" + STORAGE_NAMES[native].encode() + b"\n"
        self._text(self._keys[id(array)])
        self._text("cpu")
        self._integer(array.size, place)
        self._out += pickle.TUPLE + pickle.BINPERSID
        self._integer(0, place)
        for numbers in (array.shape, strides[::-1]):
            self._out += pickle.MARK
            for number in numbers:
                self._integer(number, place)
            self._out += pickle.TUPLE
        self._out += pickle.NEWFALSE + EMPTY_ORDERED_DICT + pickle.TUPLE + pickle.REDUCE
