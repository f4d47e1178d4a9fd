"""Estimates from an optimised HLO program of any platform: its collectives, and the tensors that fill its memory."""

import collections
import dataclasses
from typing import Any

from rgbd_jax.tools.plan.hlo import ArrayType, Instruction, Program, op_name_of
from rgbd_jax.tools.plan.stages import stage_of

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Their results lie in the memory of their operands.
_ALIASES = ("bitcast", "get-tuple-element", "tuple", "opt-barrier", "while", "parameter", "constant")
TEMPORARIES_SHOWN = 10


def collectives(program: Program) -> list[dict[str, Any]]:
    """Returns the collectives: `kind`, `number`, `tensors` and `bytes` of results, `asynchronous`: how many are.

    Loops are multiplied out.
    """
    rows: dict[str, collections.Counter[str]] = {}
    for instruction, computation, times, beside in program.executed():
        kind = instruction.opcode.removesuffix("-done")
        if kind not in COLLECTIVES:  # NAME-start has the operands' types too
            continue
        row = rows.setdefault(kind, collections.Counter(number=0, tensors=0, bytes=0, asynchronous=0))
        row["number"] += times
        row["tensors"] += times * len(instruction.arrays)
        row["bytes"] += times * instruction.size
        # GPUs split collectives in two and mark those that do not run beside other work.
        split = instruction.opcode.endswith("-done")
        overlaps = split and '"is_sync":true' not in computation[instruction.operands[0]].attributes
        row["asynchronous"] += times * (beside or overlaps)
    return [{"kind": kind, **row} for kind, row in rows.items()]


@dataclasses.dataclass
class _Buffer:
    array: ArrayType
    op_name: str
    first: int
    last: int
    temporary: bool = True


def largest_temporaries(program: Program) -> list[dict[str, Any]]:
    """Returns the temporaries that are alive when most memory is used, largest first.

    Alike ones of a stage are one row: `array`, `count`, `bytes` of them all, `stage`, and the first one's `op_name`.
    """
    buffers = [buffer for buffer in _buffers(program) if buffer.temporary]
    changes: collections.Counter[int] = collections.Counter()
    for buffer in buffers:
        changes[buffer.first] += buffer.array.size
        changes[buffer.last + 1] -= buffer.array.size
    held, most, peak = 0, 0, 0
    for position in sorted(changes):
        held += changes[position]
        if held > most:
            most, peak = held, position
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for buffer in buffers:
        if buffer.first <= peak <= buffer.last:
            array, stage = str(buffer.array), stage_of(buffer.op_name)
            new = {"array": array, "count": 0, "bytes": 0, "stage": stage, "op_name": buffer.op_name}
            row = rows.setdefault((array, stage), new)
            row["count"] += 1
            row["bytes"] += buffer.array.size
    return sorted(rows.values(), key=lambda row: -row["bytes"])[:TEMPORARIES_SHOWN]


def _buffers(program: Program) -> list[_Buffer]:
    """Returns the buffers of the entry computation in device memory with the instructions between which they live."""
    found: list[_Buffer] = []
    values: dict[str, list[_Buffer]] = {}  # of an instruction's result; of a tuple those of its elements
    computation = program.computations[program.entry]
    for position, instruction in enumerate(computation.values()):
        read = [buffer for name in instruction.operands for buffer in values.get(name, [])]
        for buffer in read:
            buffer.last = position
        opcode = instruction.opcode
        if opcode in _ALIASES or opcode.endswith(("-done", "-update")):
            values[instruction.name] = _element(instruction, read) if opcode == "get-tuple-element" else read
        else:
            values[instruction.name] = [
                _Buffer(array, op_name_of(instruction, computation), position, position) for array in instruction.arrays
            ]
            found += [buffer for buffer in values[instruction.name] if not buffer.array.on_chip]
        if instruction.root:  # the outputs are no temporaries
            for buffer in values[instruction.name]:
                buffer.temporary = False
    return found


def _element(instruction: Instruction, buffers: list[_Buffer]) -> list[_Buffer]:
    index = int(instruction.attributes.partition("index=")[2].partition(",")[0])
    return buffers[index : index + 1] if index < len(buffers) else buffers
