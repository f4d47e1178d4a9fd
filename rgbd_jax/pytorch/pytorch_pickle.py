"""Reads the pickle of a PyTorch checkpoint without Python's unpickler.

A pickle is a program for a small stack machine. The machine here knows the instructions that build containers,
numbers, text and tensors, and no other; the functions that a pickle names are looked up in our own table
(pytorch_globals). So no instruction can import, call or change anything, and every size is bounded:

- a pickle may have MAX_PICKLE_BYTES, MAX_INSTRUCTIONS and MAX_CONTAINERS (a network of 1,000 tensors with its
  optimizer has about 60,000 instructions and 14,000 containers, most of them shapes and strides);
- text and bytes are taken from what the file holds, whatever length it declares;
- how deep values are nested and how many they are written out in full is bounded in pytorch_values.
"""

import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from rgbd_jax.pytorch.checkpoint_file import RefusedError
from rgbd_jax.pytorch.pytorch_globals import GLOBALS, Constructor, ScalarType, StorageType, hashable
from rgbd_jax.pytorch.pytorch_tensor import Storage

MAX_PICKLE_BYTES = 16 << 20
MAX_INSTRUCTIONS = 1_000_000
MAX_CONTAINERS = 250_000

TRUSTED_WAY = (
    "If you trust the file, load it with PyTorch elsewhere and save only what is needed: "
    "torch.save(torch.load(path, weights_only=False)['model'], new_path)"
)


class PickleMachine:
    """Runs one pickle after the other of a file.

    Args:
        stream: the file's bytes, at the first pickle.
        view_metadata: whether a storage is named with a sixth item (the older format) or with five.

    Attributes:
        storages: the storages named so far, by key.
    """

    def __init__(self, stream: io.BytesIO, *, view_metadata: bool = False):
        self.storages: dict[str, Storage] = {}
        self._stream = stream
        self._storage_items = 6 if view_metadata else 5
        self._instructions = 0
        self._containers = 0
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Returns the value of the next pickle; tensors in it are of type Tensor or Storage.

        Raises:
            RefusedError: the pickle is damaged, too large, or names anything else than tensors and plain values.
        """
        self._stack, self._outer, self._memo = [], [], {}
        try:
            for instruction, argument, position in pickletools.genops(self._stream):
                self._instructions += 1
                if self._instructions > MAX_INSTRUCTIONS:
                    raise RefusedError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")
                self._containers += instruction.name in CONTAINERS
                if self._containers > MAX_CONTAINERS:
                    raise RefusedError(f"the pickle has more than {MAX_CONTAINERS} containers")
                if instruction.name in VALUES:
                    self._stack.append(argument)
                elif instruction.name in CONSTANTS:
                    self._stack.append(CONSTANTS[instruction.name]())
                elif instruction.name in INSTRUCTIONS:
                    INSTRUCTIONS[instruction.name](self, argument)
                else:
                    named = f" ({argument[:80]!a})" if type(argument) is str else ""
                    raise RefusedError(
                        f"the pickle uses the instruction {instruction.name}{named} at byte {position}, which no "
                        f"checkpoint of tensors and plain values needs; nothing was run. {TRUSTED_WAY}"
                    )
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            # pickletools raises ValueError for what it cannot read; the others come from a stack or memo that lacks
            # what an instruction expects.
            raise RefusedError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:120]})") from error
        if len(self._stack) != 1 or self._outer:
            raise RefusedError("its pickle is damaged (values are left over at its end)")
        return self._stack.pop()

    def _items_since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _push_tuple(self) -> None:
        items = self._items_since_mark()
        self._stack.append(tuple(items))

    def _tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError("a tuple lacks items")
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _put(self, index: int) -> None:
        # Picklers number what they remember from 0 on, so a number above the instructions so far is no pickler's.
        if index >= self._instructions:
            raise RefusedError(f"the pickle remembers a value under the number {index}, beyond its own length")
        self._memo[index] = self._stack[-1]

    def _append(self, items: list[Any], kind: type) -> None:
        container = self._stack[-1]
        if type(container) is not kind:
            raise RefusedError(f"its pickle is damaged (it adds an item to a {type(container).__name__})")
        if isinstance(container, set):
            container.update(hashable(item) for item in items)
        elif isinstance(container, list):
            container.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        container = self._stack[-1]
        if type(container) not in (dict, OrderedDict) or len(items) % 2:
            raise RefusedError(f"its pickle is damaged (it sets {len(items)} items of a {type(container).__name__})")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if hashable(key) in container:
                raise RefusedError(f"its pickle is damaged (the key {str(key)[:80]!r} occurs twice)")
            container[key] = value

    def _name(self, module: Any, name: Any) -> None:
        found = f"{module}.{name}"
        if found not in GLOBALS:
            raise RefusedError(
                f"the pickle names {found[:120]!a}, which is not a tensor or plain container; nothing was run. "
                f"{TRUSTED_WAY}"
            )
        self._stack.append(GLOBALS[found])

    def _stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise RefusedError("its pickle is damaged (a name that is not text)")
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Constructor) or type(arguments) is not tuple:
            raise RefusedError(f"the pickle calls a {type(function).__name__}; nothing was run. {TRUSTED_WAY}")
        self._stack.append(function.build(*arguments))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, ScalarType):
            target.build(state)
        elif type(target) is not OrderedDict or type(state) is not dict:
            # The state of an OrderedDict is PyTorch's `_metadata` (versions of the modules): left out.
            raise RefusedError(f"the pickle sets the state of a {type(target).__name__}; nothing was run")

    def _persistent(self) -> None:
        identity = self._stack.pop()
        if type(identity) is not tuple or len(identity) != self._storage_items or identity[0] != "storage":
            raise RefusedError("the pickle refers to something outside of it that is no storage; nothing was run")
        _, kind, key, _, numel, *view = identity
        if not isinstance(kind, StorageType) or type(key) is not str or type(numel) is not int:
            raise RefusedError("the pickle describes a storage in an unknown way")
        first, length = 0, numel
        if view and view[0] is not None:
            _, first, length = view[0]
            if type(first) is not int or type(length) is not int:
                raise RefusedError("the pickle describes a part of a storage in an unknown way")
        storage = Storage(key, kind.dtype, numel, first, length)
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise RefusedError(f"storage {key[:40]!r} is described with two different sizes")
        self._stack.append(storage)


VALUES = frozenset(
    (
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
    )
)
# Instructions that make something larger than a number.
CONTAINERS = frozenset(
    (
        "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "MARK", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BINPERSID",
    )
)  # fmt: skip
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
INSTRUCTIONS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine._mark(),
    "TUPLE": lambda machine, _: machine._push_tuple(),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "BINPUT": lambda machine, index: machine._put(index),
    "LONG_BINPUT": lambda machine, index: machine._put(index),
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    "BINGET": lambda machine, index: machine._stack.append(machine._memo[index]),
    "LONG_BINGET": lambda machine, index: machine._stack.append(machine._memo[index]),
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()], list),
    "APPENDS": lambda machine, _: machine._append(machine._items_since_mark(), list),
    "ADDITEMS": lambda machine, _: machine._append(machine._items_since_mark(), set),
    "SETITEM": lambda machine, _: machine._set_items([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._items_since_mark()),
    "GLOBAL": lambda machine, names: machine._name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._stack_name(),
    "REDUCE": lambda machine, _: machine._reduce(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._persistent(),
}
