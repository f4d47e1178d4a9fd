"""What an optimised GPU program costs: kernels, the bytes that they move, their FLOPs, and the roofline bound.

XLA has no cost model for GPUs that are not there. Every operand and result of a kernel is moved once, slices as slices;
matrix products and convolutions are the FLOPs. No kernel can be faster than the larger of both allows.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from rgbd_jax.tools.plan.hlo import FREE, Computation, Instruction, Program, op_name_of
from rgbd_jax.tools.plan.stages import stage_of
from rgbd_jax.tools.plan.targets import Chip

# These start no kernel, nor does NAME-done.
_FREE = {*FREE, "partition-id", "replica-id"}
_SLICES = ("slice", "dynamic-slice", "gather")
_DIM_LABELS = re.compile(r"dim_labels=\w+?_(\w+)->")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]+)')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel: the operation that it comes from, how often it runs, and what one run moves and computes."""

    op_name: str  # JAX's name of the operation
    instruction: str  # XLA's name of the instruction, and its result
    times: int  # runs in a step
    size: int  # bytes read and written
    flops: int  # of matrix products and convolutions
    dtype: str  # that they are computed in

    def cost(self, chip: Chip) -> "Cost":
        times, busy = self.times, self.flops / chip.peak[self.dtype]
        bound = max(self.size / chip.bandwidth, busy)
        return Cost(times, times * self.size, times * self.flops, times * busy, times * bound)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What kernels cost together."""

    kernels: int = 0  # that are started
    size: int = 0  # bytes that they move
    flops: int = 0  # of matrix products and convolutions
    busy: float = 0.0  # seconds that the FLOPs take at the device's peak
    bound: float = 0.0  # the fewest seconds that the kernels take

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))


def costs_by_stage(program: Program, chip: Chip) -> Mapping[str, Cost]:
    """Returns what each stage costs."""
    costs: dict[str, Cost] = collections.defaultdict(Cost)
    for kernel in kernels(program):
        costs[stage_of(kernel.op_name)] += kernel.cost(chip)
    return costs


def kernels(program: Program) -> list[Kernel]:
    """Returns the kernels of a program in the order in which they run; those of loops with their number of runs."""
    found = []
    for instruction, computation, times, _ in program.executed():
        if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
            continue
        if instruction.opcode == "fusion":
            body = program.computations[instruction.called("calls")]
            size = _read_by_fusion(body) + _written_by_fusion(body)
            products = [(_flops(inner, body), inner) for inner in body.values()]
        else:
            size, products = _moved(instruction, computation), [(_flops(instruction, computation), instruction)]
        flops = sum(number for number, _ in products)
        wide = any(number and inner.arrays[0].dtype in ("f32", "f64") for number, inner in products)
        name = f"{instruction.name} {instruction.type}"
        found.append(
            Kernel(op_name_of(instruction, computation), name, times, size, flops, "float32" if wide else "bfloat16")
        )
    return found


def _moved(instruction: Instruction, computation: Computation) -> int:
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.opcode == "dynamic-slice":
        return 2 * instruction.size
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].size
    return sum(operand.size for operand in operands) + instruction.size


def _read_by_fusion(body: Computation) -> int:
    users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
    for instruction in body.values():
        for place, name in enumerate(instruction.operands):
            users[name].append((instruction, place))

    def read(name: str) -> float:
        """Bytes that the users of a value read; infinite for all of it."""
        total: float = 0
        for user, place in users[name]:
            if user.opcode == "bitcast":
                total += read(user.name)
            elif user.opcode in _SLICES and place == 0:
                total += user.size
            elif user.opcode != "dynamic-update-slice" or place:  # what is updated in place is not read
                total = math.inf
        return total

    parameters = [instruction for instruction in body.values() if instruction.opcode == "parameter"]
    return sum(int(min(parameter.size, read(parameter.name))) for parameter in parameters)


def _written_by_fusion(body: Computation) -> int:
    root = next(instruction for instruction in body.values() if instruction.root)
    outputs = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for output in outputs:
        while output.opcode == "bitcast":
            output = body[output.operands[0]]
        in_place = output.opcode == "dynamic-update-slice"
        total += body[output.operands[1]].size if in_place else output.size
    return total


def _flops(instruction: Instruction, values: Computation) -> int:
    """Returns the FLOPs of a matrix product or convolution; 0 for another instruction."""
    if instruction.opcode == "dot" or "cublas" in instruction.target:
        contracted = _CONTRACTED.search(instruction.attributes)
        axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])] if contracted else []
        left = values[instruction.operands[0]].arrays[0].shape
        return 2 * math.prod(instruction.arrays[0].shape) * math.prod(left[axis] for axis in axes)
    if "cudnn$conv" not in instruction.target:
        return 0
    result, left, right = (
        array.arrays[0].shape for array in (instruction, *(values[name] for name in instruction.operands[:2]))
    )
    backward_filter, backward_input = ("Backward" + what in instruction.target for what in ("Filter", "Input"))
    outputs = right if backward_filter else left if backward_input else result  # of the forward convolution
    kernel = result if backward_filter else right
    return 2 * math.prod(outputs) * math.prod(kernel) // kernel[_output_axis(instruction.attributes)]


@functools.cache
def _output_axis(attributes: str) -> int:
    labels = _DIM_LABELS.search(attributes)
    return labels[1].index("o") if labels else 0
