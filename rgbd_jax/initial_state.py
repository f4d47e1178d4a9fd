"""The initial state of a training: from scratch, from trained weights, or from a training in PyTorch."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rgbd_jax.model import Model, family_of
from rgbd_jax.models.family import Tree
from rgbd_jax.optim import learning_rate, map_params_like
from rgbd_jax.pytorch.names import ConversionError, misfit
from rgbd_jax.pytorch.weights import TrainedWeights, detect_family, detect_network, read_weights
from rgbd_jax.step import TrainState, new_state

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class InitialState:
    """What a training starts from.

    Attributes:
        state: the train state; its step is 0, whatever the epoch.
        epoch: number of epochs that are done already.
        notes: what the history records about the training that is continued.
    """

    state: TrainState
    epoch: int = 0
    notes: Mapping[str, str | float] = dataclasses.field(default_factory=dict)


def initial_state(model: Model) -> InitialState:
    """Returns the initial state for the model's config.

    In order of precedence:

    1. `config.continue_from`: weights, epoch, best accuracy and momentum of a training in PyTorch, or of the latest
       checkpoint of a workdir.
    2. `config.init_from`, or for fusion `config.fusion.init_rgb_from` and `init_depth_from`: initial values, replaced
       by every matching weight of a checkpoint (of a workdir the best one) but the class heads, as in the reference.
    3. Initial values, a function of `config.seed`.

    Raises:
        ValueError: a checkpoint cannot be used; names it and the config field.
        FileNotFoundError: a checkpoint is missing.
    """
    config = model.config
    fields = {"continue_from": "", **model.family.init_fields}
    paths = {field: path for field in fields if (path := _field(config, field))}
    if len(paths) > 1 and (whole := [field for field in paths if not fields[field]]):
        given = ", ".join(f"config.{field}" for field in paths)
        raise ValueError(f"{given} exclude each other: config.{whole[0]} alone gives all weights; leave out the others")
    if config.continue_from:
        return _continued(model, config.continue_from)
    params, batch_stats = model.init(config.seed)
    for field, path in paths.items():
        _load_matching(params, batch_stats, model, field, path)
    return InitialState(new_state(model, params, batch_stats))


def matching_weights(model: Model, weights: TrainedWeights, path: str) -> tuple[Tree, Tree]:
    """Returns parameters and batch statistics for a model from weights of exactly its network.

    Args:
        model: the model.
        weights: the weights.
        path: where they come from, for errors.

    Raises:
        ValueError: they are of another network; names the config fields, or every tensor.
    """
    config = model.config
    try:
        detected = detect_network(weights.tensors, config.model)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    found = {"clip.frames": detected.frames, **{f"model.{name}": value for name, value in detected.model.items()}}
    expected = {name: _field(config, name) for name in found} | {"model.num_classes": model.num_classes}
    if weights.reference_layout is not None:
        found["fusion.reference_layout"] = weights.reference_layout
        expected["fusion.reference_layout"] = config.fusion.reference_layout
    differing = [
        f"config.{name}={value!r}, but the checkpoint has {found[name]!r}"
        for name, value in expected.items()
        if found[name] not in (value, None)
    ]
    if detected.family != model.family.name:
        kinds = f"a {model.family.name} network, but the checkpoint has a {detected.family} one"
        differing.append(f"config.modality={config.modality!r}: {kinds}")
    if differing:
        raise ValueError("\n  ".join([f"{path} is of another network than the config's:", *differing]))
    table = model.family.name_table
    match = table.match(weights.tensors, *model.shapes())
    if problems := match.problems():
        raise ConversionError(f"{path}: {misfit(problems)}")
    if match.skipped:
        log.warning("%s\n%s", path, table.report(match, weights.left_out))
    return table.from_pytorch({name: weights.tensors[name] for name in match.loaded}, *model.shapes())


def _field(config: ConfigDict, name: str) -> Any:
    return functools.reduce(lambda part, key: part[key], name.split("."), config)


def _read(field: str, path: str, which: str) -> TrainedWeights:
    try:
        return read_weights(path, which)
    except FileNotFoundError as error:
        found = "no such file or folder" if not Path(path).expanduser().exists() else str(error)
        raise FileNotFoundError(f"config.{field}={path}: {found}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{field}: {error}") from error


def _continued(model: Model, path: str) -> InitialState:
    config, weights = model.config, _read("continue_from", path, "latest")
    if weights.epoch is None:
        raise ValueError(f"config.continue_from={path} does not record how many epochs are done; use config.init_from")
    if weights.epoch >= config.train.epochs:
        raise ValueError(
            f"config.train.epochs={config.train.epochs}, but {weights.epoch} epochs of config.continue_from={path} are "
            "done already: raise config.train.epochs, or convert the checkpoint and use --mode=eval"
        )
    state = new_state(model, *matching_weights(model, weights, path))
    if weights.momentum:
        if config.optimizer.name != "sgd":
            raise ValueError(f"config.optimizer.name={config.optimizer.name!r}: only 'sgd' can continue {path}")
        state = dataclasses.replace(state, opt_state=_with_momentum(model, state, weights))
    note = "no momentum: it starts at zero"
    if weights.momentum:
        without = len(model.family.name_table.to_pytorch(state.params, {})) - len(weights.momentum)
        note = f"momentum of {len(weights.momentum)} parameters; that of {without} starts at zero"
    for reason in weights.left_out:
        log.warning("%s: left out: %s", path, reason)
    log.info("continuing %s after %d epochs; %s", path, weights.epoch, note)
    for name in ("momentum", "weight_decay"):
        previous = weights.optimizer.get(name, config.optimizer[name])
        if previous != config.optimizer[name]:
            log.warning("config.optimizer.%s=%s, but %s in %s", name, config.optimizer[name], previous, path)
    rate, previous = learning_rate(config, weights.epoch, [math.nan] * weights.epoch), weights.optimizer.get("lr", 0)
    if previous and abs(rate / previous - 1) > 0.01:
        log.warning("the learning rate continues at %g; in %s it was %g", rate, path, previous)
    notes: dict[str, str | float] = {"continued_from": str(path)}
    if weights.best_accuracy is not None:
        notes["best_accuracy_there"] = weights.best_accuracy
    if "lr" in weights.optimizer:
        notes["learning_rate_there"] = weights.optimizer["lr"]
    return InitialState(state, weights.epoch, notes)


def _with_momentum(model: Model, state: TrainState, weights: TrainedWeights) -> Tree:
    """Returns the optimizer state with the momentum buffers; parameters without one start at zero."""
    table = model.family.name_table
    zeros = {name: np.zeros_like(tensor) for name, tensor in table.to_pytorch(state.params, {}).items()}
    buffers, _ = table.from_pytorch({**zeros, **weights.momentum}, state.params, {})
    return map_params_like(lambda _: buffers, state.opt_state)


def _load_matching(params: Tree, batch_stats: Tree, model: Model, field: str, path: str) -> None:
    """Replaces, in place, the weights of the network or of one modality's part by those of a checkpoint that match."""
    config, weights, part = model.config, _read(field, path, "best"), model.family.init_fields[field]
    expected = family_of(part) if part else model.family
    found = detect_family(weights.tensors)
    if found not in (None, expected.name):
        others = [f"config.{name}" for name, of in model.family.init_fields.items() if bool(of) != bool(part)]
        advice = (
            f"use {' and '.join(others)}" if others else f"config.modality={config.modality!r} cannot start from it"
        )
        raise ValueError(f"config.{field}={path}: a {found} network, not a {expected.name} one; {advice}")
    if part:
        params, batch_stats = params[part], batch_stats[part]
    elif weights.reference_layout not in (None, config.fusion.reference_layout):
        raise ValueError(
            f"config.fusion.reference_layout={config.fusion.reference_layout}, but config.{field}={path} has "
            f"{weights.reference_layout}"
        )
    table = expected.name_table
    heads = {name: "last layer of a class head" for name in weights.tensors if table.class_heads.fullmatch(name)}
    body = {name: tensor for name, tensor in weights.tensors.items() if name not in heads}
    match = table.match(body, params, batch_stats)
    match.skipped.update(heads)
    if not match.loaded:
        raise ConversionError(f"config.{field}={path}: none of its {len(weights.tensors)} tensors fits the network")
    table.overlay(weights.tensors, match, params, batch_stats)
    log.info("config.%s=%s\n%s", field, path, table.report(match, weights.left_out))
