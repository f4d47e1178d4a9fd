"""The initial state of a training: from scratch, from trained weights, or from a training in PyTorch."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.model import FAMILIES, Model, family_of
from rgbd_jax.models.family import Tree
from rgbd_jax.models.name_table import ConversionError
from rgbd_jax.optim import learning_rate, map_params_like
from rgbd_jax.pytorch.weights import TrainedWeights, read_weights
from rgbd_jax.registry import resolve
from rgbd_jax.step import TrainState, new_state

log = logging.getLogger("rgbd_jax")


class InitialState(NamedTuple):
    """What a training starts from."""

    state: TrainState  # its step is 0, whatever the epoch
    epoch: int = 0  # number of epochs that are done already
    notes: Mapping[str, str | float] = {}  # what the history records about the training that is continued


def initial_state(model: Model) -> InitialState:
    """Returns the initial state for the model's config.

    In order of precedence:

    1. `config.continue_from`: weights, epoch, best accuracy and momentum of a training in PyTorch, or of the latest
       checkpoint of a workdir.
    2. `config.init_from`, or for fusion `config.fusion.init_rgb_from` and `init_depth_from`: initial values, replaced
       by every matching weight of a checkpoint (of a workdir the best one) but the class heads, as in the reference;
       of a frozen part by all.
    3. Initial values, a function of `config.seed`.
    """
    config = model.config
    fields = {"continue_from": "", **model.family.init_fields}
    paths = {field: path for field in fields if (path := _field(config, field))}
    if len(paths) > 1 and (whole := [field for field in paths if not fields[field]]):
        given = ", ".join(f"config.{field}" for field in paths)
        raise ValueError(f"{given} exclude each other: config.{whole[0]} alone gives all weights; leave out the others")
    if config.continue_from:
        return _continued(model, config.continue_from)
    needed = [field for field, part in fields.items() if part in model.family.frozen and field not in paths]
    if needed and not any(not fields[field] for field in paths):
        expected = "a trained network: it is frozen, and has to be trained before the fusion"
        raise ValueError("\n  ".join(f"config.{field}='': expected {expected}" for field in needed))
    params, batch_stats = model.init(config.seed)
    for field, path in paths.items():
        _load_matching(params, batch_stats, model, field, path)
    return InitialState(new_state(model, params, batch_stats))


def matching_weights(model: Model, weights: TrainedWeights) -> tuple[Tree, Tree]:
    """Returns parameters and batch statistics for a model from weights of exactly its network.

    Raises ValueError that names the config fields that differ, or tensors that are not finite.
    """
    config, detected = model.config, weights.detect(model.config.model)
    found = {f"model.{name}": value for name, value in detected.model.items()}
    found |= {f"fusion.{name}": value for name, value in detected.fusion.items()}
    found |= {"clip.frames": detected.frames, "fusion.reference_layout": weights.reference_layout}
    expected = {name: _field(config, name) for name in found} | {"model.num_classes": model.num_classes}
    differing = [
        f"config.{name}={value!r}, but the checkpoint has {found[name]!r}"
        for name, value in expected.items()
        if found[name] not in (value, None)
    ]
    if detected.family != model.family.name:
        kinds = f"a {model.family.name} network, but the checkpoint has a {detected.family} one"
        field = "modality" if FAMILIES[detected.family].network == config.network else "network"
        differing.append(f"config.{field}={config[field]!r}: {kinds}")
    table = model.family.name_table
    if differing:
        # A network that lacks a tensor can look like one without that part.
        missing = table.match(weights.tensors, *model.shapes()).missing if detected.family == model.family.name else {}
        differing += [f"{name}: missing, the config's network has {shape}" for name, shape in missing.items()][:8]
        raise ValueError("\n  ".join([f"{weights.source} is of another network than the config's:", *differing]))
    match = weights.match(model)
    if not_finite := weights.not_finite(match.loaded):
        raise ValueError(f"{not_finite}; predictions would be NaN: use an earlier checkpoint")
    if match.skipped:
        log.warning("%s\n%s", weights.source, table.report(match, weights.left_out))
    return table.from_pytorch(weights.tensors, *model.shapes())


def _field(config: ConfigDict, name: str) -> Any:
    return functools.reduce(lambda part, key: part[key], name.split("."), config)


def _read(field: str, path: str, which: str) -> TrainedWeights:
    try:
        return read_weights(resolve(path).path, which)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config.{field}: {error}") from error
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
    state = new_state(model, *matching_weights(model, weights))
    if weights.momentum:
        if config.optimizer.name != "sgd":
            raise ValueError(f"config.optimizer.name={config.optimizer.name!r}: only 'sgd' can continue {path}")
        momentum = jax.tree.map(np.zeros_like, state.params)  # zero where a parameter has no buffer
        model.family.name_table.overlay(weights.momentum, momentum, {})
        state = dataclasses.replace(state, opt_state=map_params_like(lambda _: momentum, state.opt_state))
    for reason in weights.left_out:
        log.warning("%s: left out: %s", path, reason)
    log.info("continuing %s, %d epochs, momentum of %d parameters", path, weights.epoch, len(weights.momentum))
    settings = {name: config.optimizer[name] for name in ("momentum", "weight_decay", "decay_vectors")}
    settings["nesterov"] = bool(config.optimizer.arguments.nesterov)
    settings["lr"] = learning_rate(config, weights.epoch, [math.nan] * weights.epoch)
    for name, value in settings.items():
        previous = weights.optimizer.get(name)
        if isinstance(previous, int | float) and not math.isclose(value, previous, rel_tol=0.01):
            log.warning("the optimizer continues with %s=%g; in %s it was %g", name, value, path, previous)
    notes = {"best_accuracy_there": weights.best_accuracy, "learning_rate_there": weights.optimizer.get("lr")}
    known = {name: value for name, value in notes.items() if value is not None}
    return InitialState(state, weights.epoch, {"continued_from": str(path), **known})


def _load_matching(params: Tree, batch_stats: Tree, model: Model, field: str, path: str) -> None:
    """Replaces, in place, the weights of the network or of one modality's part by those of a checkpoint that match."""
    config, init_fields, weights = model.config, model.family.init_fields, _read(field, path, "best")
    part, frozen = init_fields[field], model.family.frozen
    expected = family_of(config.network, part) if part else model.family
    if weights.family not in (None, expected.name):
        others = " and ".join(f"config.{name}" for name, of in init_fields.items() if bool(of) != bool(part))
        differs = "modality" if FAMILIES[weights.family].network == config.network else "network"
        cannot = f"config.{differs}={config[differs]!r} cannot start from it"
        advice = f"use {others}" if others and differs == "modality" else cannot
        raise ValueError(f"config.{field}={path}: a {weights.family} network, not a {expected.name} one; {advice}")
    if part:
        params, batch_stats = params.get(part, {}), batch_stats[part]
    elif weights.reference_layout not in (None, layout := config.fusion.reference_layout):
        found = weights.reference_layout
        raise ValueError(f"config.fusion.reference_layout={layout}, but config.{field}={path} has {found}")
    _check_width(config, field, path, weights)
    table = expected.name_table
    heads = {name: "last layer of a class head" for name in weights.tensors if table.class_heads.fullmatch(name)}
    if part in frozen:
        heads = {}
        _check_temperature(config, weights, part)
    body = {name: tensor for name, tensor in weights.tensors.items() if name not in heads}
    match = table.match(body, params, batch_stats)
    if frozen:
        weights.detect()  # whether the frozen parts are there at all
        if problems := table.match(body, {}, batch_stats).problems():
            raise ConversionError(f"config.{field}={path}: {problems}")
    match.skipped.update(heads)
    if not match.loaded:
        raise ConversionError(f"config.{field}={path}: none of its {len(weights.tensors)} tensors fits the network")
    if not_finite := weights.not_finite(match.loaded):
        raise ValueError(f"config.{field}: {not_finite}; start from another checkpoint")
    table.overlay({name: body[name] for name in match.loaded}, params, batch_stats)
    log.info("config.%s=%s\n%s", field, path, table.report(match, weights.left_out))


def _check_width(config: ConfigDict, field: str, path: str, weights: TrainedWeights) -> None:
    """Refuses a network of another width: nearly none of its tensors fits."""
    try:
        found = dict(weights.detect(config.model).model)
    except ConversionError:  # a part of a network: what fits of it is loaded
        return
    if found["width"] != config.model.width:
        del found["num_classes"]
        differing = {name: value for name, value in found.items() if value != config.model[name]}
        lines = [f"config.model.{name}={config.model[name]}, but it has {value}" for name, value in differing.items()]
        raise ValueError("\n  ".join([f"config.{field}={path} is of another width than the config's network:", *lines]))


def _check_temperature(config: ConfigDict, weights: TrainedWeights, part: str) -> None:
    """Warns if the logits of a frozen network are divided by another temperature than at the end of its training."""
    if weights.epoch and config.loss.sharpness:
        used = config.fusion.frozen_temperatures[MODALITIES.index(part)]
        _, temperature = family_of(config.network, part).schedule(config, weights.epoch - 1)
        if not math.isclose(used, temperature, rel_tol=0.01):
            found = f"the {part} network's is {used:g}, but after its {weights.epoch} epochs it was {temperature:.4g}"
            log.warning("config.fusion.frozen_temperatures: %s", found)
