"""Weights under PyTorch's names and layouts and back, as the `NameTable` of a network family describes them."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import einops
import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

Tree = Mapping[str, Any]
COUNTER = "num_batches_tracked"  # PyTorch's number of training steps that a BatchNorm has seen
BUFFERS = ("running_mean", "running_var", COUNTER)  # tensors that no optimizer changes
UNKNOWN = "the network has no such tensor"


class ConversionError(ValueError):
    """Weights that cannot be read, or do not fit a network; the message lists every problem found."""


class DetectedNetwork(NamedTuple):
    """The network that tensors belong to, as far as their names and shapes determine it."""

    family: str
    model: Mapping[str, Any]  # `num_classes` and fields of `config.model`
    frames: int | None  # `config.clip.frames`; None if any number will do
    fusion: Mapping[str, Any] = {}  # fields of `config.fusion`


class Match(NamedTuple):
    """How the tensors of a state dict and those of a network meet, by PyTorch's names."""

    loaded: dict[str, tuple[int, ...]]  # name -> shape of what fits, with the step counters that the network lacks
    skipped: dict[str, str]  # name -> reason, of what is in the state dict and does not
    missing: dict[str, tuple[int, ...]]  # name -> shape of what the network has and the state dict lacks

    def problems(self) -> str:
        """Returns what lists each missing or misshapen tensor, "" if there is none; unknown ones are no problem."""
        found = [f"{name}: {reason}" for name, reason in self.skipped.items() if reason != UNKNOWN]
        found += [f"{name}: missing, the network has {shape}" for name, shape in self.missing.items()]
        return f"{len(found)} tensors do not fit the network:{_lines(found, 30)}" if found else ""


@dataclasses.dataclass(frozen=True)
class NameTable:
    """The PyTorch names of a network family's weights.

    A row is (name here, name in PyTorch). A word in angle brackets stands for any of its alternatives; <block> is the
    index into weights that are stacked here.
    """

    rows: Sequence[tuple[str, str]]  # in the order in which PyTorch registers the modules
    words: Mapping[str, Mapping[str, str]]  # word -> alternative here -> alternative in PyTorch
    layouts: Mapping[str, str]  # last part of a name, or word.alternative -> axes here and there, where they differ
    class_heads: re.Pattern  # the last layers of the class heads, which other classes cannot use
    parts: Mapping[str, str]  # pattern of names -> the part of the network, for reports; the first one counts
    family: Callable[[Iterable[str]], str | None]  # names of a state dict -> its family, if it has this table
    # Shapes -> the network; of several with the same shapes the one with the given fields of `config.model`.
    detect: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], DetectedNetwork]

    @functools.cached_property
    def _names(self) -> dict[str, tuple[str, str]]:
        """Name here -> (name in PyTorch, layout), for every alternative of every row."""
        names = {}
        for row in self.rows:
            used = re.findall("<(.*?)>", row[0])
            for chosen in itertools.product(*(self.words[word].items() for word in used)):
                ours, theirs = row
                layout = self.layouts.get(ours.rsplit(".", 1)[-1], "")
                for word, (alternative, translated) in zip(used, chosen, strict=True):
                    ours, theirs = ours.replace(f"<{word}>", alternative), theirs.replace(f"<{word}>", translated)
                    layout = self.layouts.get(f"{word}.{alternative}", layout)
                names[ours] = theirs, layout
        return names

    @functools.cached_property
    def _rank(self) -> dict[str, int]:
        """The parts of all names in the order of PyTorch's state dict."""
        names = [theirs for theirs, _ in self._names.values()]
        return {part: rank for rank, part in enumerate(dict.fromkeys(".".join([*names, COUNTER]).split(".")))}

    def in_order(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a network's tensors in the order of PyTorch's state dict, by which optimizers number them."""

        def key(name: str) -> list[tuple[int, int]]:
            return [(0, int(part)) if part.isdigit() else (1, self._rank[part]) for part in name.split(".")]

        return {name: tensors[name] for name in sorted(tensors, key=key)}

    def to_pytorch(self, params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
        """Returns the PyTorch state dict of a network, in PyTorch's order and without its step counters.

        The tensors are views of the network's NumPy arrays. Anything with the structure of the parameters will do
        (gradients, momentum, shapes), with or without running statistics.

        Raises:
            ConversionError: a weight has no row.
        """
        tensors = {}
        for path, leaf in (traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)).items():
            if (ours := ".".join(path)) not in self._names:
                raise ConversionError(f"no PyTorch name for the weight {ours}: add it to the family's name table")
            name, layout = self._names[ours]
            shape_only = isinstance(leaf, jax.ShapeDtypeStruct)
            array = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if shape_only else np.asarray(leaf)
            for block, view in enumerate(array if "<block>" in name else [array]):
                tensors[name.replace("<block>", str(block))] = einops.rearrange(view, layout) if layout else view
        return self.in_order(tensors)

    def match(self, tensors: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> Match:
        """Compares the tensors of a state dict, in PyTorch's layout, with those of a network, arrays or shapes."""
        ours = {name: tensor.shape for name, tensor in self.to_pytorch(params, batch_stats).items()}
        counters = {name.removesuffix("running_var") + COUNTER for name in ours if name.endswith("running_var")}
        match = Match({}, {}, {name: shape for name, shape in ours.items() if name not in tensors})
        for name, tensor in tensors.items():
            shape, whole = tuple(tensor.shape), tensor.dtype.kind in "iu"
            expected = () if name in counters else ours.get(name)
            if expected is None:
                match.skipped[name] = UNKNOWN
            elif shape != expected:
                match.skipped[name] = f"shape {shape}, the network has {expected}"
            elif not (whole if name in counters else tensor.dtype.kind == "f" or tensor.dtype == ml_dtypes.bfloat16):
                kind = "whole" if name in counters else "floating-point"
                match.skipped[name] = f"numbers of type {tensor.dtype}, expected {kind} ones"
            else:
                match.loaded[name] = shape
        return match

    def overlay(self, tensors: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> None:
        """Writes tensors that fit over the weights of a network, nested dicts of NumPy arrays, in place."""
        for name, view in self.to_pytorch(params, batch_stats).items():
            if name in tensors:
                view[...] = tensors[name]

    def from_pytorch(self, tensors: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> tuple[dict, dict]:
        """Returns (parameters, running statistics) with the values of a state dict; tensors of unknown names are left.

        Structure, shapes and types are those of the network's parameters and running statistics, arrays or shapes.

        Raises:
            ConversionError: lists every missing or misshapen tensor.
        """
        if problems := self.match(tensors, params, batch_stats).problems():
            raise ConversionError(problems)
        result = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), (dict(params), dict(batch_stats)))
        self.overlay(tensors, *result)
        return result

    def report(self, match: Match, left_out: Sequence[str] = ()) -> str:
        """Returns a table of what became of tensors: loaded by part of the network, skipped and why, missing.

        `left_out` are lines about what else was skipped.
        """
        sizes: dict[str, list[int]] = {}
        for name, shape in match.loaded.items():
            if not name.endswith(COUNTER):
                part = next(m.expand(title) for row, title in self.parts.items() if (m := re.fullmatch(row, name)))
                sizes.setdefault(part.lstrip(), []).append(math.prod(shape))
        sizes["all"] = list(itertools.chain(*sizes.values()))
        table = [("loaded", "tensors", "numbers")]
        table += [(part, str(len(numbers)), f"{sum(numbers):,}") for part, numbers in sizes.items()]
        first, second, third = (max(map(len, column)) for column in zip(*table, strict=True))
        report = "\n".join(f"{part:{first}}  {count:>{second}}  {total:>{third}}" for part, count, total in table)
        # What the network has no place for comes last: a deeper network alone can have hundreds of such tensors.
        reasons = sorted(match.skipped.items(), key=lambda item: item[1] == UNKNOWN)
        skipped = [*left_out, *(f"{name}: {reason}" for name, reason in reasons)]
        missing = [f"{name} {shape}" for name, shape in match.missing.items()]
        for title, lines in (("skipped", skipped), ("missing", missing)):
            report += f"\n{title}: {len(lines) or 'nothing'}" + _lines(lines, 20)
        return report


def parameter_names(tensors: Mapping[str, Any]) -> list[str]:
    """Returns the parameters of a state dict in its order, by which PyTorch numbers the optimizer's state."""
    return [name for name in tensors if not name.endswith(BUFFERS)]


def parameter_groups(tensors: Mapping[str, Any], *, decay_vectors: bool) -> list[list[str]]:
    """Returns the parameters in the groups of PyTorch's optimizer: one, or first those without weight decay."""
    names = parameter_names(tensors)
    if decay_vectors:
        return [names]
    vectors = [name for name in names if tensors[name].ndim <= 1 or name.endswith(".bias")]
    return [vectors, [name for name in names if name not in set(vectors)]]


def _lines(lines: Sequence[str], count: int) -> str:
    shown = [*lines[:count], *[f"and {len(lines) - count} more"] * (len(lines) > count)]
    return "".join(f"\n  {line}" for line in shown)
