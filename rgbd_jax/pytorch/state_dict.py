"""Weights of this package's networks to and from the PyTorch reference's state dict."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util

from rgbd_jax.pytorch.checkpoint_file import release_pages
from rgbd_jax.pytorch.name_table import ConversionError, entries, reference_order

Tree = Mapping[str, Any]
COUNTER = "num_batches_tracked"  # what PyTorch keeps beside every BatchNorm: the training steps that it has seen
BUFFERS = ("running_mean", "running_var", COUNTER)  # leaves that no optimizer changes
RELEASED_BYTES = 1 << 24  # copied from a file before its pages are given back: it never lies in memory as a whole
UNKNOWN = "the network has no such tensor"
CLASS_HEAD = re.compile(r"dtn\.mlp_head_(small|media|large)\.1\.(weight|bias)")


class Match(NamedTuple):
    """How the tensors of a state dict and those of a network met, by PyTorch's names.

    Attributes:
        loaded: name -> shape of what was taken over.
        skipped: name -> why it was not, of what is in the state dict.
        missing: name -> shape of what the network has and the state dict has not.
        counters: names of the step counters, which have no place in the network but in a checkpoint.
    """

    loaded: dict[str, tuple[int, ...]]
    skipped: dict[str, str]
    missing: dict[str, tuple[int, ...]]
    counters: list[str]

    def problems(self) -> list[str]:
        """Returns a line for every tensor that is missing or does not fit; what the network lacks is none."""
        misfits = [f"{name}: {why}" for name, why in self.skipped.items() if why != UNKNOWN]
        return misfits + [f"{name}: missing, the network has {shape}" for name, shape in self.missing.items()]


def to_pytorch(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """Returns the PyTorch state dict of a network, in the reference's order and without its step counters.

    Args:
        params: nested dict of parameters.
        batch_stats: nested dict of running statistics (empty: parameters, or momentum, alone).
    """
    leaves = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)
    state_dict = {}
    for entry in entries(params, batch_stats):
        tensor = np.asarray(leaves[entry.path])
        state_dict[entry.pytorch_name] = entry.layout.to_pytorch(tensor if entry.block is None else tensor[entry.block])
    return in_reference_order(state_dict)


def from_pytorch(state_dict: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> tuple[dict, dict]:
    """Returns (parameters, batch statistics) with the values of a PyTorch state dict that fits the network.

    Args:
        state_dict: name -> array, in PyTorch's layout.
        params: the network's parameters (arrays or shapes with dtype): the result has their structure and types.
        batch_stats: likewise the running statistics.

    Raises:
        ConversionError: lists every missing, unexpected or wrongly shaped tensor.
    """
    match = match_tensors(state_dict, params, batch_stats)
    unknown = [f"{name}: {why}" for name, why in match.skipped.items() if why == UNKNOWN]
    if problems := match.problems() + unknown:
        raise misfit(problems)
    empty = [
        traverse_util.unflatten_dict(
            {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in traverse_util.flatten_dict(tree).items()}
        )
        for tree in (params, batch_stats)
    ]
    overlay(state_dict, match, *empty)
    return empty[0], empty[1]


def match_tensors(
    state_dict: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree, *, skip: re.Pattern | None = None
) -> Match:
    """Compares the tensors of a state dict with those of a network.

    Args:
        state_dict: name -> array, in PyTorch's layout.
        params: the network's parameters, arrays or shapes.
        batch_stats: likewise the running statistics.
        skip: names that are not taken over even if they fit.

    Returns:
        What can be taken over, what not and why, and what there is nothing for.
    """
    match = Match({}, {}, {}, [])
    for tree in (params, batch_stats):
        leaves = traverse_util.flatten_dict(tree)
        for entry in entries(tree):
            name = entry.pytorch_name
            shape = leaves[entry.path].shape if entry.block is None else leaves[entry.path].shape[1:]
            expected = entry.layout.to_pytorch(np.broadcast_to(np.zeros(()), shape)).shape
            found = state_dict.get(name)
            if found is None or (skip and skip.fullmatch(name)):
                match.missing[name] = expected
            elif tuple(found.shape) != expected:
                match.skipped[name] = f"shape {tuple(found.shape)}, the network has {expected}"
            elif not _is_floating(found.dtype):
                match.skipped[name] = f"numbers of type {found.dtype}, expected floating-point ones"
            else:
                match.loaded[name] = expected
    for name, tensor in state_dict.items():
        if skip and skip.fullmatch(name):
            match.skipped[name] = "last layer of a class head"
        elif name in match.loaded or name in match.skipped:
            continue
        elif not _is_counter(name, match):
            match.skipped[name] = UNKNOWN
        elif tensor.shape or tensor.dtype.kind not in "iu":
            match.skipped[name] = f"shape {tuple(tensor.shape)} of {tensor.dtype}, expected one whole number"
        else:
            match.counters.append(name)
    return match


def misfit(problems: Sequence[str], shown: int = 30) -> ConversionError:
    """Returns the error that lists why tensors do not fit a network, the first `shown` of them."""
    lines = [*problems[:shown], *[f"and {len(problems) - shown} more"] * (len(problems) > shown)]
    return ConversionError(f"{len(problems)} tensors do not fit the network:\n  " + "\n  ".join(lines))


def _is_counter(name: str, match: Match) -> bool:
    statistics = name.removesuffix(COUNTER) + "running_var"
    return name.endswith(f".{COUNTER}") and (statistics in match.loaded or statistics in match.skipped)


def _is_floating(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def overlay(state_dict: Mapping[str, np.ndarray], match: Match, params: Tree, batch_stats: Tree) -> None:
    """Writes the tensors that a match found over the weights of a network, in place.

    Args:
        state_dict: name -> array, in PyTorch's layout.
        match: what `match_tensors` returned for it and the network.
        params: nested dict of NumPy arrays.
        batch_stats: likewise the running statistics.
    """
    copied = 0
    for tree in (params, batch_stats):
        leaves = traverse_util.flatten_dict(tree)
        for entry in entries(tree):
            if entry.pytorch_name in match.loaded:
                target = leaves[entry.path]
                source = np.asarray(state_dict[entry.pytorch_name])
                target[... if entry.block is None else entry.block] = entry.layout.from_pytorch(source)
                copied += source.nbytes
                if copied >= RELEASED_BYTES:
                    release_pages(source)
                    copied = 0


def in_reference_order(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors in the order of the reference's state dict."""
    return {name: tensors[name] for name in sorted(tensors, key=reference_order)}
