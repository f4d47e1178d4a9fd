"""A traced program as a list of operations: how many products it computes, and what it sends to other devices."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

# Calls whose operations are those of the caller.
_CALLS = {"jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2", "shard_map"}
# Operations that hand on what they are given, in another shape or under another name.
_SAME = {"reshape", "squeeze", "name", "pvary", "pcast", "copy", "reduce_precision"}
_SENDS = {
    "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce", "pmin": "all-reduce",
    "all_gather": "all-gather", "all_gather_invariant": "all-gather", "reduce_scatter": "reduce-scatter",
    "ppermute": "collective-permute", "all_to_all": "all-to-all",
}  # fmt: skip

# A last axis of fewer elements is not laid along the lanes of a TPU.
SHORT = 8


@dataclasses.dataclass(frozen=True)
class Amount:
    """A number that is an affine function of the clips: `fixed + each * clips`."""

    fixed: int = 0
    each: int = 0

    def at(self, clips: int) -> int:
        """Returns the number for so many clips."""
        return self.fixed + self.each * clips


@dataclasses.dataclass(frozen=True)
class Message:
    """What a collective operation sends.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter" or another.
        shape: of the whole tensor: what is reduced, or what is gathered from all devices.
        itemsize: bytes of an element.
        axes: the mesh axes along which devices take part.
        times: how often it is sent.
    """

    kind: str
    shape: tuple[int, ...]
    itemsize: int
    axes: tuple[str, ...]
    times: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor, sent once."""
        return math.prod(self.shape) * self.itemsize


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation; values are numbers.

    Attributes:
        name: the primitive of JAX.
        inputs: values that it reads; literals are left out.
        outputs: values that it makes.
        products: multiplications, each with its addition.
        messages: what it sends to other devices.
        bodies: programs that it runs: a loop's body, or the branches of a choice.
        times: how often it runs them.
    """

    name: str
    inputs: list[int]
    outputs: list[int]
    products: Amount = Amount()
    messages: tuple[Message, ...] = ()
    bodies: tuple["Program", ...] = ()
    times: int = 1


class Program:
    """What a function computes, as traced; only loops and choices are not written out.

    Args:
        traced: the function's jaxpr for two numbers of clips, or the same one twice.
        clips: these two numbers.
        lanes: the last axis of an array is padded to a multiple of so many elements in memory, the last but one where
            the last is short, as TPUs do.

    Attributes:
        operations: in the order in which they were traced, without those whose results are not used.
        sizes: bytes of each value.
        inputs: values of the arguments; their `sizes` are 0, since the caller has them.
        outputs: values of the results; None where a result is a literal.
    """

    def __init__(self, traced: tuple[core.Jaxpr, core.Jaxpr], clips: tuple[int, int] = (0, 1), lanes: int = 1):
        self.clips, self.lanes = clips, lanes
        self.operations: list[Operation] = []
        self.sizes: list[Amount] = []
        used = [dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0] for jaxpr in traced]
        one, other = used[0], used[1]
        known = {variable: self._new() for variable in [*one.constvars, *one.invars]}
        self.inputs = [known[variable] for variable in one.invars]
        self._write_out(one, other, known)
        self.outputs = [_read(known, result) for result in one.outvars]

    def _new(self, size: Amount = Amount()) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _amount(self, one: int, other: int) -> Amount:
        each = (other - one) // (self.clips[1] - self.clips[0])
        return Amount(one - each * self.clips[0], each)

    def _write_out(self, one: core.Jaxpr, other: core.Jaxpr, known: dict[core.Var, int]) -> None:
        for equation, twin in zip(one.eqns, other.eqns, strict=True):
            name = equation.primitive.name
            if name != twin.primitive.name:
                raise AssertionError(f"{name} and {twin.primitive.name}: the program depends on the number of clips")
            inputs = [_read(known, operand) for operand in equation.invars]
            bodies = list(zip(_bodies(equation), _bodies(twin), strict=True))
            if name in _CALLS:
                (body, twin_body), *_ = bodies
                results: Sequence[int | None] = self._write_out_call(body, twin_body, inputs)
            elif name in _SAME:
                results = inputs[:1]
            elif "branches_platforms" in equation.params:
                results = self._write_out_call(*_accelerators_branch(equation, bodies), inputs[1:])
            else:
                results = self._add(equation, twin, inputs, bodies)
            for variable, result in zip(equation.outvars, results, strict=True):
                known[variable] = self._new() if result is None else result

    def _write_out_call(self, body: core.Jaxpr, twin: core.Jaxpr, inputs: Sequence[int | None]) -> list[int | None]:
        """Adds the operations of a body as if they stood in the caller; returns its results."""
        inner = {variable: self._new() for variable in body.constvars}
        for variable, value in zip(body.invars, inputs, strict=True):
            inner[variable] = self._new() if value is None else value
        self._write_out(body, twin, inner)
        return [_read(inner, result) for result in body.outvars]

    def _add(
        self, equation: core.JaxprEqn, twin: core.JaxprEqn, inputs: list[int | None], bodies: Sequence[tuple]
    ) -> list[int]:
        """Adds an operation and returns its results."""
        name, settings = equation.primitive.name, equation.params
        results = [
            self._new(self._amount(_size(a, self.lanes), _size(b, self.lanes)))
            for a, b in zip(equation.outvars, twin.outvars, strict=True)
        ]  # fmt: skip
        if name == "scan":  # what is carried on is updated in place
            first, count = settings["num_consts"], settings["num_carry"]
            carried = inputs[first : first + count]
            results[:count] = [new if old is None else old for new, old in zip(results, carried, strict=False)]
        self.operations.append(
            Operation(
                name,
                [value for value in inputs if value is not None],
                results,
                self._amount(products(equation), products(twin)),
                tuple(_messages(equation)),
                tuple(Program(pair, self.clips, self.lanes) for pair in bodies),
                settings["length"] if name == "scan" else 1,
            )
        )
        return results

    def flops(self, clips: int = 0) -> int:
        """Returns the floating-point operations of all matrix products and convolutions: two for each product.

        Of a choice the branch that computes most counts; a loop of unknown length counts once.
        """
        total = 0
        for operation in self.operations:
            inner = [body.flops(clips) for body in operation.bodies]
            within = max(inner, default=0) if operation.name == "cond" else sum(inner)
            total += 2 * operation.products.at(clips) + operation.times * within
        return total

    def messages(self) -> Iterator[Message]:
        """Yields what one device sends to the others, with how often it does."""
        for operation in self.operations:
            yield from operation.messages
            for body in operation.bodies:
                for message in body.messages():
                    yield dataclasses.replace(message, times=message.times * operation.times)


def products(equation: core.JaxprEqn) -> int:
    """Returns the multiplications, each with its addition, of a matrix product or convolution; of others 0."""
    settings = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = settings["dimension_numbers"]
        lengths = _array(equation.invars[0]).shape
        return _array(equation.outvars[0]).size * math.prod(lengths[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = _array(equation.invars[1])
        outputs = kernel.shape[settings["dimension_numbers"].rhs_spec[0]]
        # The holes of a dilated input are not multiplied.
        return _array(equation.outvars[0]).size * kernel.size // outputs // math.prod(settings["lhs_dilation"])
    return 0


def _messages(equation: core.JaxprEqn) -> Iterator[Message]:
    kind = _SENDS.get(equation.primitive.name)
    if kind is None:
        return
    axes = equation.params.get("axes", equation.params.get("axis_name"))
    for operand, result in zip(equation.invars, equation.outvars, strict=True):
        whole = max(_array(operand), _array(result), key=lambda array: array.size)
        yield Message(kind, whole.shape, whole.dtype.itemsize, axes if isinstance(axes, tuple) else (axes,))


def _accelerators_branch(equation: core.JaxprEqn, bodies: Sequence[tuple]) -> tuple[core.Jaxpr, core.Jaxpr]:
    """Returns the branch of a choice by platform that is for all platforms but those that are named (CPUs)."""
    platforms = equation.params["branches_platforms"]
    return bodies[platforms.index(None)]


def _bodies(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    return [getattr(body, "jaxpr", body) for body in core.jaxprs_in_params(equation.params)]


def _read(known: dict[core.Var, int], operand: Any) -> int | None:
    return None if isinstance(operand, core.Literal) else known[operand]


def _array(operand: Any) -> Any:
    """Returns what is known of an operand: shape, size and dtype."""
    return operand.aval


def _size(variable: Any, lanes: int) -> int:
    """Returns the bytes of an array in memory."""
    array = _array(variable)
    lengths = list(array.shape)
    if len(lengths) > 1:
        padded = -1 if lengths[-1] >= SHORT else -2
        lengths[padded] = -(-lengths[padded] // lanes) * lanes
    return math.prod(lengths) * getattr(array.dtype, "itemsize", 8)
