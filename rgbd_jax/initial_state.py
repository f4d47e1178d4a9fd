"""Where a training without a checkpoint of its own starts: from scratch, from trained weights, or amid another one."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.optim import learning_rate, map_trees
from rgbd_jax.pytorch.decoupled_names import DECOUPLED
from rgbd_jax.pytorch.names import ConversionError, misfit
from rgbd_jax.pytorch.weights import TrainedWeights, detect_network, is_fusion, read_weights
from rgbd_jax.step import Stream, TrainState, Tree

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class InitialState:
    """What a training starts from.

    Attributes:
        state: the train state; its step is 0, whatever the epoch.
        epoch: epochs that are done already.
        notes: what the history is to say of the training that is continued.
    """

    state: TrainState
    epoch: int = 0
    notes: Mapping[str, str | float] = dataclasses.field(default_factory=dict)


def initial_state(stream: Stream) -> InitialState:
    """Returns the start that the stream's config asks for.

    `config.continue_from` takes a training over, with its epoch, best accuracy and momentum. Otherwise weights are the
    initial values, over which `config.init_from`, or `config.fusion.init_rgb_from` and `init_depth_from` (one stream
    each), are laid: whatever fits, without the class heads, as the reference does. Of a workdir the best checkpoint is
    taken to start from, and the latest to go on with.

    Raises:
        ValueError: a checkpoint cannot be used; names it and the config field.
        FileNotFoundError: a checkpoint is not there.
    """
    config = stream.config
    sources = [("continue_from", config.continue_from, ""), ("init_from", config.init_from, "")]
    if stream.fusion:
        sources += [(f"fusion.init_{name}_from", config.fusion[f"init_{name}_from"], name) for name in MODALITIES]
    sources = [source for source in sources if source[1]]
    whole = [field for field, _, modality in sources if not modality]
    if whole and len(sources) > 1:
        given = ", ".join(f"config.{field}" for field, _, _ in sources)
        raise ValueError(f"{given} exclude each other: config.{whole[0]} alone gives all weights; leave out the others")
    if config.continue_from:
        return _continued(stream, config.continue_from)
    initial = stream.init(config.seed)
    for field, path, modality in sources:
        _lay_over(initial, stream, field, path, modality)
    return InitialState(initial)


def weights_for(stream: Stream, trained: TrainedWeights, path: str) -> tuple[dict, dict]:
    """Returns (parameters, running statistics) of a whole network that is the stream's.

    Args:
        stream: the stream that the weights are for.
        trained: the weights.
        path: where they are from, for errors.

    Raises:
        ValueError: they are of another network; names the config fields, or every tensor.
    """
    config = stream.config
    try:
        detected = detect_network(trained.tensors, config.model)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    found = {"modality": "fusion" if detected.fusion else "rgb or depth", "clip.frames": detected.frames}
    found |= {f"model.{name}": value for name, value in detected.model.items() if name != "num_classes"}
    here = {"modality": "fusion" if stream.fusion else "rgb or depth", "clip.frames": config.clip.frames}
    here |= {f"model.{name}": config.model[name] for name in detected.model if name != "num_classes"}
    if trained.reference_layout is not None and stream.fusion:
        found["fusion.reference_layout"] = trained.reference_layout
        here["fusion.reference_layout"] = config.fusion.reference_layout
    differing = [
        f"config.{name}={value!r}, but the checkpoint has {found[name]!r}"
        for name, value in here.items()
        if found[name] not in (value, None)
    ]
    if detected.model["num_classes"] != stream.num_classes:
        differing.append(f"{stream.num_classes} classes, but the checkpoint has {detected.model['num_classes']}")
    if differing:
        raise ValueError("\n  ".join([f"{path} is of another network than the config's:", *differing]))
    shapes = stream.shapes()
    match = DECOUPLED.match(trained.tensors, shapes.params, shapes.batch_stats)
    if problems := match.problems():
        raise ConversionError(f"{path}: {misfit(problems)}")
    if match.skipped:
        log.warning("%s\n%s", path, DECOUPLED.report(match, trained.left_out))
    fitting = {name: trained.tensors[name] for name in match.loaded}
    return DECOUPLED.from_pytorch(fitting, shapes.params, shapes.batch_stats)


def _read(field: str, path: str, which: str) -> TrainedWeights:
    try:
        return read_weights(path, which)
    except FileNotFoundError as error:
        found = "no such file or folder" if not Path(path).expanduser().exists() else str(error)
        raise FileNotFoundError(f"config.{field}={path}: {found}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{field}: {error}") from error


def _continued(stream: Stream, path: str) -> InitialState:
    config = stream.config
    trained = _read("continue_from", path, "latest")
    if trained.epoch is None:
        raise ValueError(f"config.continue_from={path}: does not say how many epochs are done; use config.init_from")
    if trained.epoch >= config.train.epochs:
        raise ValueError(
            f"config.train.epochs={config.train.epochs}, but {trained.epoch} epochs of config.continue_from={path} are "
            "done already: raise config.train.epochs, or convert the checkpoint and use --mode=eval"
        )
    state = stream.state_of(*weights_for(stream, trained, path))
    if trained.momentum:
        if config.optimizer.name != "sgd":
            raise ValueError(f"config.optimizer.name={config.optimizer.name!r}: only 'sgd' can continue {path}")
        state = dataclasses.replace(state, optimizer_state=_with_momentum(state, trained))
    for line in trained.left_out:
        log.warning("%s: left out: %s", path, line)
    log.info("continuing %s after %d epochs; %s", path, trained.epoch, _momentum_note(trained, state))
    for name in ("momentum", "weight_decay"):
        if name in trained.optimizer and trained.optimizer[name] != config.optimizer[name]:
            there = trained.optimizer[name]
            log.warning("config.optimizer.%s=%s, but it was %s in %s", name, config.optimizer[name], there, path)
    rate, rate_there = learning_rate(config, trained.epoch, [math.nan] * trained.epoch), trained.optimizer.get("lr", 0)
    if rate_there and abs(rate / rate_there - 1) > 0.01:
        log.warning("the schedule goes on with a learning rate of %g; in %s it was %g", rate, path, rate_there)
    notes: dict[str, str | float] = {"continued_from": str(path)}
    if trained.best_accuracy is not None:
        notes["best_accuracy_there"] = trained.best_accuracy
    if "lr" in trained.optimizer:
        notes["learning_rate_there"] = trained.optimizer["lr"]
    return InitialState(state, trained.epoch, notes)


def _with_momentum(state: TrainState, trained: TrainedWeights) -> Tree:
    """Returns the optimizer state with the momentum buffers; parameters without one start with zeros."""
    zeros = {name: np.zeros_like(tensor) for name, tensor in DECOUPLED.to_pytorch(state.params, {}).items()}
    buffers, _ = DECOUPLED.from_pytorch({**zeros, **trained.momentum}, state.params, {})
    return map_trees(lambda _: buffers, state.optimizer_state)


def _momentum_note(trained: TrainedWeights, state: TrainState) -> str:
    if not trained.momentum:
        return "it has no momentum, which starts at zero"
    without = len(DECOUPLED.to_pytorch(state.params, {})) - len(trained.momentum)
    return f"momentum of {len(trained.momentum)} parameters, {without} start at zero"


def _lay_over(state: TrainState, stream: Stream, field: str, path: str, modality: str) -> None:
    """Writes the weights of a checkpoint, those that fit, over the state's, or over those of one modality's stream."""
    config, trained = stream.config, _read(field, path, "best")
    fusion_expected = stream.fusion and not modality
    if is_fusion(trained.tensors) != fusion_expected:
        kinds = ("a network of one stream", "a fusion network")
        advice = (
            "use config.fusion.init_rgb_from and config.fusion.init_depth_from"
            if fusion_expected
            else ("use config.init_from" if modality else f"config.modality={config.modality!r} cannot start from it")
        )
        raise ValueError(f"config.{field}={path}: {kinds[not fusion_expected]}, not {kinds[fusion_expected]}; {advice}")
    params, batch_stats = state.params, state.batch_stats
    if modality:
        params, batch_stats = params[modality], batch_stats[modality]
    elif stream.fusion and trained.reference_layout not in (None, config.fusion.reference_layout):
        raise ValueError(
            f"config.fusion.reference_layout={config.fusion.reference_layout}, but config.{field}={path} has "
            f"{trained.reference_layout}"
        )
    match = DECOUPLED.match(trained.tensors, params, batch_stats, skip=DECOUPLED.class_heads)
    if not match.loaded:
        raise ConversionError(f"config.{field}={path}: none of its {len(trained.tensors)} tensors fits the network")
    DECOUPLED.overlay(trained.tensors, match, params, batch_stats)
    log.info("config.%s=%s\n%s", field, path, DECOUPLED.report(match, trained.left_out))
