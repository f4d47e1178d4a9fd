"""What an optimised TPU program costs by the compiler's own model: cycles, which it notes at every fusion."""

import collections
import re
from typing import Any

from rgbd_jax.tools.plan.hlo import FREE, Program, op_name_of
from rgbd_jax.tools.plan.program import COLLECTIVES
from rgbd_jax.tools.plan.stages import stage_of

# These take no time; collectives are listed by themselves.
_FREE = {*FREE, *COLLECTIVES, "AllocateBuffer", "ConcatBitcast"}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def cycles_by_stage(program: Program) -> collections.Counter[str]:
    """Returns the estimated cycles of each stage, loops multiplied out; collectives have none."""
    cycles: collections.Counter[str] = collections.Counter()
    for instruction, computation, times, _ in program.executed():
        if found := _CYCLES.search(instruction.attributes):
            cycles[stage_of(op_name_of(instruction, computation))] += times * int(found[1])
    return cycles


def uncounted(program: Program) -> list[dict[str, Any]]:
    """Returns the operations for which the compiler estimates no cycles: `kind`, `number`, and `bytes` of results.

    A program that has more of them only looks cheaper. Loops are multiplied out; what runs beside other operations,
    such as a copy into a TPU's own memory, is left out. The kind with the most bytes is the first.
    """
    rows: dict[str, collections.Counter[str]] = {}
    for instruction, _, times, asynchronous in program.executed():
        kind = instruction.target or instruction.opcode
        beside = asynchronous or kind.endswith(("-start", "-done", "-update"))
        if beside or kind in _FREE or _CYCLES.search(instruction.attributes):
            continue
        row = rows.setdefault(kind, collections.Counter(number=0, bytes=0))
        row["number"] += times
        row["bytes"] += times * instruction.size
    return sorted(({"kind": kind, **row} for kind, row in rows.items()), key=lambda row: -row["bytes"])
