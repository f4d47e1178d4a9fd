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


class Match(NamedTuple):
    """How the tensors of a state dict and those of a network meet, by PyTorch's names."""

    loaded: dict[str, tuple[int, ...]]  # name -> shape of what fits
    skipped: dict[str, str]  # name -> reason, of what is in the state dict and does not
    missing: dict[str, tuple[int, ...]]  # name -> shape of what the network has and the state dict lacks
    counters: list[str]  # the step counters, which have no place in the network but in a checkpoint

    def problems(self) -> list[str]:
        """Returns a line for every tensor that is missing or misshapen; unknown ones are no problem."""
        misfits = [f"{name}: {reason}" for name, reason in self.skipped.items() if reason != UNKNOWN]
        return misfits + [f"{name}: missing, the network has {shape}" for name, shape in self.missing.items()]


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
    def _patterns(self) -> list[tuple[re.Pattern, str]]:
        def group(word: re.Match) -> str:
            return f"(?P<{word[1]}>{'|'.join(map(re.escape, self.words[word[1]]))})"

        return [(re.compile(re.sub("<(.*?)>", group, re.escape(ours))), theirs) for ours, theirs in self.rows]

    @functools.cached_property
    def _rank(self) -> dict[str, int]:
        """The parts of all names in the order of PyTorch's state dict."""
        names = []
        for _, theirs in self.rows:
            used = [word for word in re.findall("<(.*?)>", theirs) if word in self.words]
            for chosen in itertools.product(*(self.words[word].values() for word in used)):
                names.append(_filled(theirs, dict(zip(used, chosen, strict=True))))
        parts = dict.fromkeys(part for name in [*names, *BUFFERS] for part in name.split("."))
        return {part: rank for rank, part in enumerate(parts)}

    def in_order(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a network's tensors in the order of PyTorch's state dict, by which optimizers number them."""

        def key(name: str) -> list[tuple[int, int]]:
            return [(0, int(part)) if part.isdigit() else (1, self._rank[part]) for part in name.split(".")]

        return {name: tensors[name] for name in sorted(tensors, key=key)}

    def _row(self, ours: str) -> tuple[str, str]:
        for pattern, theirs in self._patterns:
            if match := pattern.fullmatch(ours):
                words = match.groupdict()
                layout = self.layouts.get(ours.rsplit(".", 1)[-1], "")
                for word, alternative in words.items():
                    layout = self.layouts.get(f"{word}.{alternative}", layout)
                return _filled(theirs, {word: self.words[word][key] for word, key in words.items()}), layout
        raise ConversionError(f"no PyTorch name for the weight {ours}: add it to the family's name table")

    def to_pytorch(self, params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
        """Returns the PyTorch state dict of a network, in PyTorch's order and without its step counters.

        The tensors are views of the network's NumPy arrays. Anything with the structure of the parameters will do
        (gradients, momentum, shapes), with or without running statistics.

        Raises:
            ConversionError: a weight has no row.
        """
        tensors = {}
        for path, leaf in (traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)).items():
            name, layout = self._row(".".join(path))
            shape_only = isinstance(leaf, jax.ShapeDtypeStruct)
            array = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if shape_only else np.asarray(leaf)
            parts = {name: array}
            if "<block>" in name:
                parts = {name.replace("<block>", str(block)): array[block, ...] for block in range(len(array))}
            for part, tensor in parts.items():
                tensors[part] = einops.rearrange(tensor, layout) if layout else tensor
        return self.in_order(tensors)

    def match(self, tensors: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> Match:
        """Compares the tensors of a state dict, in PyTorch's layout, with those of a network, arrays or shapes."""
        match = Match({}, {}, {}, [])
        ours = {name: tensor.shape for name, tensor in self.to_pytorch(params, batch_stats).items()}
        match.missing.update({name: shape for name, shape in ours.items() if name not in tensors})
        for name, tensor in tensors.items():
            shape, counted = tuple(tensor.shape), f"{name.removesuffix(COUNTER)}running_var"
            if name in ours and shape != ours[name]:
                match.skipped[name] = f"shape {shape}, the network has {ours[name]}"
            elif name in ours and tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
                match.skipped[name] = f"numbers of type {tensor.dtype}, expected floating-point ones"
            elif name in ours:
                match.loaded[name] = shape
            elif not name.endswith(f".{COUNTER}") or counted not in ours or counted not in tensors:
                match.skipped[name] = UNKNOWN
            elif shape or tensor.dtype.kind not in "iu":
                match.skipped[name] = f"shape {shape} of {tensor.dtype}, expected one whole number"
            else:
                match.counters.append(name)
        return match

    def overlay(self, tensors: Mapping[str, np.ndarray], match: Match, params: Tree, batch_stats: Tree) -> None:
        """Writes the tensors that match over the weights of a network, nested dicts of NumPy arrays, in place."""
        for name, view in self.to_pytorch(params, batch_stats).items():
            if name in match.loaded:
                view[...] = tensors[name]

    def from_pytorch(self, tensors: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> tuple[dict, dict]:
        """Returns (parameters, running statistics) with the values of a state dict that fits the network.

        Structure, shapes and types are those of the network's parameters and running statistics, arrays or shapes.

        Raises:
            ConversionError: lists every missing, unexpected or wrongly shaped tensor.
        """
        match = self.match(tensors, params, batch_stats)
        if problems := match.problems() + [f"{name}: {why}" for name, why in match.skipped.items() if why == UNKNOWN]:
            raise misfit(problems)
        result = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), (dict(params), dict(batch_stats)))
        self.overlay(tensors, match, *result)
        return result

    def report(self, match: Match, left_out: Sequence[str] = ()) -> str:
        """Returns a table of what became of tensors: loaded by part of the network, skipped and why, missing.

        `left_out` are lines about what else was skipped.
        """
        counts: dict[str, list[int]] = {}
        for name, shape in match.loaded.items():
            part = next(found.expand(title) for row, title in self.parts.items() if (found := re.fullmatch(row, name)))
            counts.setdefault(part.lstrip(), []).append(math.prod(shape))
        counts["all"] = list(itertools.chain(*counts.values()))
        rows = [("loaded", "tensors", "numbers")]
        rows += [(part, str(len(sizes)), f"{sum(sizes):,}") for part, sizes in counts.items()]
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = ["  ".join((part.ljust(first), *map(str.rjust, numbers, others))) for part, *numbers in rows]
        # What the network has no place for comes last: a deeper network alone can have hundreds of such tensors.
        reasons = sorted(match.skipped.items(), key=lambda item: item[1] == UNKNOWN)
        skipped = [*left_out, *(f"{name}: {reason}" for name, reason in reasons)]
        missing = [f"{name} {shape}" for name, shape in match.missing.items()]
        for title, names in (("skipped", skipped), ("missing", missing)):
            lines += [f"{title}: {len(names) or 'nothing'}", *(f"  {name}" for name in _first(names, 20))]
        return "\n".join(lines)


def misfit(problems: Sequence[str]) -> ConversionError:
    """Returns the error that lists why tensors do not fit a network."""
    return ConversionError("\n  ".join([f"{len(problems)} tensors do not fit the network:", *_first(problems, 30)]))


def parameter_names(tensors: Mapping[str, Any]) -> list[str]:
    """Returns the parameters of a state dict in its order, by which PyTorch numbers the optimizer's state."""
    return [name for name in tensors if not name.endswith(BUFFERS)]


def _first(lines: Sequence[str], count: int) -> list[str]:
    return [*lines[:count], *[f"and {len(lines) - count} more"] * (len(lines) > count)]


def _filled(template: str, words: Mapping[str, str]) -> str:
    return re.sub("<(.*?)>", lambda word: words.get(word[1], word[0]), template)
