"""A trained network under the reference's names: what every checkpoint, of PyTorch or of this package, is read into."""

import dataclasses
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_jax.checkpoint.model_card import ModelCardData
from rgbd_jax.pytorch.checkpoint_file import CheckpointFileError
from rgbd_jax.pytorch.detect import is_fusion
from rgbd_jax.pytorch.name_table import ConversionError
from rgbd_jax.pytorch.state_dict import BUFFERS, in_reference_order

MOMENTUM_PREFIX = "momentum_buffer."  # of the momentum buffers in a safetensors file
RECORD = "rgbd_jax"  # the metadata field of a safetensors file that holds everything but tensors
OTHER_SGD = ("nesterov", "dampening", "maximize")  # variants of SGD that this package does not have
SGD_GROUP = {"lr": 0.01, "momentum": 0.9, "dampening": 0, "weight_decay": 0.0, "nesterov": False}


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """A network as a training left it.

    Attributes:
        tensors: the state dict by the reference's names: parameters, running statistics, step counters.
        momentum: parameter -> buffer of SGD with momentum; empty if there is none.
        epoch: epochs that are finished; None if it is not known.
        best_accuracy: best validation accuracy so far, as the training counted it; None if it is not known.
        optimizer: settings of the optimizer by PyTorch's names ("lr", "momentum", ...); empty if not known.
        reference_layout: `config.fusion.reference_layout` of a fusion network; None if it is not known.
        left_out: what else the source holds, each with the reason why it is not taken over.
        card: what a run of this package records of them, for their model card; None for another program's.
    """

    tensors: Mapping[str, np.ndarray]
    momentum: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    epoch: int | None = None
    best_accuracy: float | None = None
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference_layout: bool | None = None
    left_out: tuple[str, ...] = ()
    card: ModelCardData | None = None

    def record(self) -> dict[str, Any]:
        """Returns everything but the tensors, JSON-able."""
        return {
            "epoch": self.epoch,
            "best_accuracy": self.best_accuracy,
            "optimizer": dict(self.optimizer),
            "reference_layout": self.reference_layout,
        }


def parameter_names(tensors: Mapping[str, Any]) -> list[str]:
    """Returns the parameters of a state dict in its order, by which PyTorch numbers the optimizer's state."""
    return [name for name in tensors if name.rsplit(".", 1)[-1] not in BUFFERS]


def from_contents(contents: Any, path: Path) -> TrainedWeights:
    """Returns the network in what `torch.save` wrote: {"model", "optimizer", "epoch", "bestacc"} or a state dict.

    Args:
        contents: what `pytorch_file.read_pytorch` returned.
        path: the file, for errors.

    Raises:
        CheckpointFileError: there is no state dict in it, or its optimizer state contradicts itself.
    """
    if not isinstance(contents, Mapping):
        raise CheckpointFileError(f"{path}: holds a {type(contents).__name__}; expected a dict with a state dict")
    bare = contents and all(isinstance(value, np.ndarray) for value in contents.values())
    fields: Mapping[str, Any] = {"model": contents} if bare else contents
    model = fields.get("model")
    if not isinstance(model, Mapping) or not model:
        found = ", ".join(map(repr, list(fields)[:8])) or "nothing"
        raise CheckpointFileError(f"{path}: no state dict under 'model'; found {found}")
    others = [repr(name) for name, value in model.items() if not (isinstance(name, str) and _is_tensor(value))]
    if others:
        raise CheckpointFileError(f"{path}: its 'model' holds what is no tensor: {', '.join(others[:8])}")
    tensors = _without_prefix(model, path)
    momentum, optimizer, left_out = _momentum(fields.get("optimizer"), tensors, path)
    known = {"model", "optimizer", "epoch", "bestacc"}
    left_out += [f"{name}: not part of the network" for name in fields if name not in known]
    return TrainedWeights(
        tensors,
        momentum,
        _number(fields, "epoch", int, path),
        _number(fields, "bestacc", float, path),
        optimizer,
        reference_layout=is_fusion(tensors) or None,
        left_out=tuple(left_out),
    )


def to_contents(weights: TrainedWeights) -> dict[str, Any]:
    """Returns what the reference's training saves, for `pytorch_file.write_pytorch`.

    Raises:
        ConversionError: a fusion network that the reference cannot compute.
    """
    if weights.reference_layout is False and is_fusion(weights.tensors):
        raise ConversionError(
            "a fusion network trained with config.fusion.reference_layout=False: the reference would compute something "
            "else with its weights, so they are not written for PyTorch; use .safetensors"
        )
    tensors = in_reference_order(weights.tensors)
    contents: dict[str, Any] = {"model": OrderedDict(tensors)}
    if weights.optimizer:
        names = parameter_names(tensors)
        state = {
            number: {"momentum_buffer": weights.momentum[name]}
            for number, name in enumerate(names)
            if name in weights.momentum
        }
        group = {**weights.optimizer, "params": list(range(len(names)))}
        contents["optimizer"] = {"state": state, "param_groups": [group]}
    if weights.epoch is not None:
        contents["epoch"] = weights.epoch
    if weights.best_accuracy is not None:
        contents["bestacc"] = weights.best_accuracy
    return contents


def from_safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Path) -> TrainedWeights:
    """Returns the network in a safetensors file, by whichever program it was written.

    Args:
        tensors: as `safetensors_file.read_safetensors` returned them.
        metadata: likewise.
        path: the file, for errors.

    Raises:
        CheckpointFileError: what this package notes in such files is damaged.
    """
    try:
        record = json.loads(metadata.get(RECORD, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointFileError(f"{path}: its metadata {RECORD!r} is not JSON: {error}") from error
    if not isinstance(record, Mapping) or not isinstance(record.get("optimizer", {}), Mapping):
        raise CheckpointFileError(f"{path}: its metadata {RECORD!r} is not what this package writes: {record!r}"[:300])
    buffers = {name: array for name, array in tensors.items() if name.startswith(MOMENTUM_PREFIX)}
    model = _without_prefix({name: array for name, array in tensors.items() if name not in buffers}, path)
    momentum = {name.removeprefix(MOMENTUM_PREFIX): array for name, array in buffers.items()}
    _check_momentum(momentum, model, path)
    return TrainedWeights(
        model,
        momentum,
        _number(record, "epoch", int, path),
        _number(record, "best_accuracy", float, path),
        record.get("optimizer", {}),
        reference_layout=record.get("reference_layout"),
    )


def to_safetensors(weights: TrainedWeights) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns tensors and metadata for `safetensors_file.write_safetensors`."""
    momentum = {MOMENTUM_PREFIX + name: buffer for name, buffer in weights.momentum.items()}
    return {**weights.tensors, **momentum}, {"format": "pt", RECORD: json.dumps(weights.record())}


def _momentum(
    saved: Any, tensors: Mapping[str, np.ndarray], path: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """Returns the momentum buffers by parameter, the optimizer's settings, and what is left out."""
    if saved is None:
        return {}, {}, []
    try:
        (group,) = saved["param_groups"]
        numbers, states = list(group["params"]), dict(saved["state"])
        settings = {name: value for name, value in group.items() if name != "params"}
        if not all(type(number) is int for number in numbers):
            raise ValueError("parameters that are no numbers")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointFileError(
            f"{path}: its 'optimizer' is not the state of a PyTorch optimizer with one parameter group ({error!r})"
        ) from error
    names = parameter_names(tensors)
    if len(numbers) != len(names):
        raise CheckpointFileError(
            f"{path}: its optimizer has {len(numbers)} parameters, its model {len(names)}: they are not of one training"
        )
    if "momentum" not in settings or any(settings.get(name) for name in OTHER_SGD):
        return {}, {}, [f"optimizer: only the state of SGD without {', '.join(OTHER_SGD)} is taken over"]
    momentum = {}
    for number, name in zip(numbers, names, strict=True):
        state = states.get(number)
        buffer = state.get("momentum_buffer") if isinstance(state, Mapping) else None
        if buffer is not None:  # a parameter that never had a gradient has none
            momentum[name] = buffer
    _check_momentum(momentum, tensors, path)
    settings = {
        name: value.item() if _is_tensor(value) and value.size == 1 else value for name, value in settings.items()
    }
    plain = {name: value for name, value in settings.items() if isinstance(value, int | float | str | bool | None)}
    return momentum, plain, []


def _check_momentum(momentum: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: Path) -> None:
    problems = []
    for name, buffer in momentum.items():
        found = buffer.shape if _is_tensor(buffer) else type(buffer).__name__
        expected = tensors[name].shape if name in tensors else "no such parameter"
        if found != expected:
            problems.append(f"{name} {found}, expected {expected}")
    if problems:
        shown = "; ".join(problems[:8])
        raise CheckpointFileError(f"{path}: {len(problems)} momentum buffers do not fit their parameters: {shown}")


def _without_prefix(model: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    tensors = {name.removeprefix("module."): value for name, value in model.items()}
    if len(tensors) < len(model):
        raise CheckpointFileError(f"{path}: it names some tensors both with and without 'module.'")
    return tensors


def _number(fields: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    value = fields.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()  # an accuracy that was kept as a tensor
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if kind is float:
            return float(value)
        if math.isfinite(value) and value == int(value) >= 0:
            return int(value)
    expected = "a number" if kind is float else "a whole number from 0 on"
    raise CheckpointFileError(f"{path}: its {name!r} is {str(value)[:80]}; expected {expected}")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray)
