"""Parses the text of an optimised HLO program, `compiled.as_text()`, as far as estimates need it."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# An array's type: dtype, shape, and after a colon in its layout a TPU's tiles and memory space.
_ARRAY = re.compile(
    r"\b(?P<dtype>[a-z]+\d*\w*)\[(?P<shape>[\d,<=]*)\](?:\{(?P<order>[\d,]*)(?::(?P<layout>[^}]*))?\})?"
)
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>\S+) = (?P<rest>.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([^\s,(){}]+)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_BITS = re.compile(r"\d+")
CALLED = re.compile(r"\b(?P<role>calls|to_apply|body|condition)=%?(?P<name>[^\s,}]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[^\s,}]+))")
# Operations that do nothing on a device.
FREE = ("after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier", "parameter", "tuple")
_OP_NAME, _TARGET = re.compile(r'op_name="([^"]*)"'), re.compile(r'custom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """An array's type."""

    dtype: str  # XLA's name of it, "bf16"
    shape: tuple[int, ...]  # the logical one
    size: int  # bytes in memory, with a TPU's padding to whole tiles
    on_chip: bool  # in a TPU's own memory (VMEM, SMEM) instead of HBM

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction: what it is named, computes, reads, and carries as attributes (text)."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> list[ArrayType]:
        """The arrays of the result: one, or those of a tuple."""
        return array_types(self.type)

    @functools.cached_property
    def size(self) -> int:
        return sum(array.size for array in self.arrays)

    @property
    def op_name(self) -> str:
        """JAX's name of the operation, with its scopes."""
        return _first(_OP_NAME, self.attributes)

    @property
    def target(self) -> str:
        """What a custom call calls."""
        return _first(_TARGET, self.attributes)

    def called(self, role: str) -> str:
        """Returns the computation that it calls as its "calls", "to_apply", "body" or "condition"; "" without one."""
        return next((match["name"] for match in CALLED.finditer(self.attributes) if match["role"] == role), "")

    @property
    def branches(self) -> list[str]:
        found = ",".join(name for names in _BRANCHES.findall(self.attributes) for name in names)
        return re.findall(r"%?([^\s,{}]+)", found)


Computation = dict[str, Instruction]


class Execution(NamedTuple):
    """An instruction that runs, its computation, how often, and whether that computation runs beside others."""

    instruction: Instruction
    computation: Computation
    times: int
    asynchronous: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """A program's computations by name; instructions are in the order in which they run."""

    computations: dict[str, Computation]
    entry: str

    def executed(self, name: str = "", times: int = 1, asynchronous: bool = False) -> Iterator[Execution]:
        """Yields every instruction that runs in a computation, by default the entry, those within fusions excepted.

        Of a conditional all branches count. A loop whose trip count is unknown counts once.
        """
        computation = self.computations[name or self.entry]
        for instruction in computation.values():
            match instruction.opcode:
                case "while":
                    trips = self.trip_count(instruction)
                    yield from self.executed(instruction.called("condition"), times * (trips + 1))
                    yield from self.executed(instruction.called("body"), times * trips)
                case "conditional":
                    for branch in instruction.branches:
                        yield from self.executed(branch, times)
                case "call":
                    yield from self.executed(instruction.called("to_apply"), times)
                case "async-start":
                    yield from self.executed(instruction.called("calls"), times, asynchronous=True)
                case _:
                    yield Execution(instruction, computation, times, asynchronous)

    def trip_count(self, loop: Instruction) -> int:
        """Returns how often a loop runs: as XLA found it, or from its condition `index < constant`; else 1."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self.computations[loop.called("condition")]
        root = next(instruction for instruction in condition.values() if instruction.root)
        constants = [condition[name] for name in root.operands if condition[name].opcode == "constant"]
        is_count = "direction=LT" in root.attributes or root.opcode == "fusion"
        return int(constants[0].arguments) if is_count and len(constants) == 1 else 1


def op_name_of(instruction: Instruction, computation: Computation) -> str:
    """Returns JAX's name of the operation; of a copy that the compiler added, the name of what it copies."""
    while not instruction.op_name and len(instruction.operands) == 1 and instruction.operands[0] in computation:
        instruction = computation[instruction.operands[0]]
    return instruction.op_name


def parse(text: str) -> Program:
    """Parses a program."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head["name"], {})
                entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif match := _INSTRUCTION.match(line):
            current[match["name"]] = _instruction(match["name"], match["rest"], bool(match["root"]))
    return Program(computations, entry)


def array_types(text: str) -> list[ArrayType]:
    """Returns the arrays of a type's text."""
    return [_array_type(*match.group("dtype", "shape", "order", "layout")) for match in _ARRAY.finditer(text)]


@functools.cache
def _array_type(dtype: str, shape_text: str, order: str | None, layout: str | None) -> ArrayType:
    shape = tuple(int(length.lstrip("<=")) for length in shape_text.split(",") if length)
    lengths = [shape[int(axis)] for axis in reversed((order or "").split(","))] if order else list(shape)  # major first
    layout = layout or ""
    if tile := _TILE.search(layout):
        tiled = [int(length) for length in tile[1].split(",")]
        for axis in range(1, min(len(tiled), len(lengths)) + 1):
            lengths[-axis] = math.ceil(lengths[-axis] / tiled[-axis]) * tiled[-axis]
    bits = _BITS.search(dtype)
    size = 0 if dtype in ("token", "opaque") else math.prod(lengths) * (int(bits[0]) if bits else 8)
    return ArrayType(dtype, shape, math.ceil(size / 8), "S(" in layout)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    rest = _COMMENT.sub("", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, _ = rest[end + 1 :].partition("(")
    start = end + 1 + len(opcode)
    stop = _closing(rest, start)
    arguments = rest[start + 1 : stop]
    return Instruction(name, opcode, rest[:end], tuple(_NAME.findall(arguments)), arguments, rest[stop + 1 :], root)


def _first(pattern: re.Pattern, text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"HLO: a parenthesis is not closed: {text[start : start + 80]}")
