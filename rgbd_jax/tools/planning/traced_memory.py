"""How much a traced program keeps in memory at once, if XLA fuses what is cheap to compute again.

What XLA really does is known only when it has compiled the program for a device. Here, operations on single elements,
copies and slices are computed where they are needed and take no memory, unless a matrix product, a convolution or
another operation that reads memory takes them; everything else is stored from when it is computed to its last use.
"""

from collections.abc import Iterable, Iterator

from rgbd_jax.tools.planning.traced import Amount, Program

# They read their operands from memory, and their results lie there.
_STORED = {
    "dot_general", "conv_general_dilated", "scan", "while", "cond", "sort", "top_k", "gather", "scatter",
    "scatter-add", "cumsum", "dynamic_update_slice", "reduce_window_max", "reduce_window_min", "psum",
    "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant", "reduce_scatter", "ppermute", "all_to_all",
    "random_bits",
}  # fmt: skip
# Their results lie in memory, but what they read may be computed on the way.
_REDUCED = {"concatenate", "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin"}


class Storage:
    """When the values of a program lie in memory.

    Args:
        program: the program; its inputs and its outputs do not count.
    """

    def __init__(self, program: Program):
        self._program = program
        self._sources = _sources(program, program.outputs)
        last = self._last_uses()
        results = {value for value in program.outputs if value is not None}
        leaving: dict[int, list[int]] = {}
        for value, moment in last.items():
            leaving.setdefault(moment, []).append(value)
        # At each operation that stores something: what lies in memory, and the programs that it runs meanwhile.
        self._moments: list[tuple[Amount, tuple[Storage, ...]]] = []
        self._bodies: dict[int, tuple[Storage, ...]] = {}
        present = results.union(program.inputs)  # they do not count
        fixed = each = 0
        for moment, operation in enumerate(program.operations):
            stored = {value for value in operation.outputs if self._sources[value] == {value}}
            for value in stored - present:
                fixed += program.sizes[value].fixed
                each += program.sizes[value].each
            present |= stored
            if operation.bodies:
                self._bodies[moment] = tuple(Storage(body) for body in operation.bodies)
            if stored:
                self._moments.append((Amount(fixed, each), self._bodies.get(moment, ())))
            for value in leaving.get(moment, ()):
                if value in present and value not in results and value not in program.inputs:
                    fixed -= program.sizes[value].fixed
                    each -= program.sizes[value].each

    def _last_uses(self) -> dict[int, int]:
        """Returns the last moment at which each stored value is read, maybe by way of values that are not stored."""
        last: dict[int, int] = {}
        for moment, operation in enumerate(self._program.operations):
            if any(self._sources[value] == {value} for value in operation.outputs):
                for read in operation.inputs:
                    last.update(dict.fromkeys(self._sources[read], moment))
                for value in operation.outputs:
                    last[value] = moment
        end = len(self._program.operations)
        for result in self._program.outputs:
            if result is not None:
                last.update(dict.fromkeys(self._sources[result], end))
        return last

    def peak(self, clips: int = 0) -> int:
        """Returns the bytes that lie in memory at once, at most."""
        sizes = [stored.at(clips) + _largest_peak(bodies, clips) for stored, bodies in self._moments]
        return max(sizes, default=0)

    def traffic(self, clips: int = 0) -> int:
        """Returns the bytes that are written to memory and read from it if each stored value is read once."""
        total = 0
        for moment, operation in enumerate(self._program.operations):
            stored = [value for value in operation.outputs if self._sources[value] == {value}]
            total += 2 * sum(self._program.sizes[value].at(clips) for value in stored)
            total += operation.times * sum(body.traffic(clips) for body in self._bodies.get(moment, ()))
        return total


def _largest_peak(bodies: Iterable[Storage], clips: int) -> int:
    return max((body.peak(clips) for body in bodies), default=0)


def held_for(program: Program, results: Iterable[int | None], clips: int = 0) -> int:
    """Returns the bytes that have to be stored so that results of a program can be computed; inputs do not count."""
    sources = _sources(program, wanted=())
    needed = set().union(*(sources[value] for value in results if value is not None))
    return sum(program.sizes[value].at(clips) for value in needed.difference(program.inputs))


def _sources(program: Program, wanted: Iterable[int | None]) -> dict[int, frozenset[int]]:
    """Returns, for each value, the stored values that it is computed from: for a stored one itself.

    Args:
        program: the program.
        wanted: values that have to be stored, whatever computes them.
    """
    stored = {value for value in wanted if value is not None}.union(program.inputs, _strided_maxima(program))
    for operation in program.operations:
        if operation.name in _STORED:
            stored.update(operation.inputs)
        if operation.name in _STORED or operation.name in _REDUCED:
            stored.update(operation.outputs)
    sources = {value: frozenset([value] if value in stored else []) for value in range(len(program.sizes))}
    for operation in program.operations:
        read = frozenset().union(*(sources[value] for value in operation.inputs))
        sources.update((value, read) for value in operation.outputs if value not in stored)
    return sources


def _strided_maxima(program: Program) -> Iterator[int]:
    """Yields the maxima of pooling with a stride: XLA stores them, while it computes those without one again."""
    clips = program.clips[0]
    strided: set[int] = set()
    for operation in program.operations:
        if operation.name == "slice":
            (whole,), (part,) = operation.inputs, operation.outputs
            if 3 * program.sizes[part].at(clips) < 2 * program.sizes[whole].at(
                clips
            ):  # more than the border is left out
                strided.add(part)
        elif operation.name == "max" and strided.intersection(operation.inputs):
            yield from operation.outputs
