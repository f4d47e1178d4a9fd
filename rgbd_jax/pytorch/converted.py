"""Converted checkpoints: a folder that Orbax wrote, with a network's weights laid out as this package has them.

weights    "params", "batch_stats" and, of a training, "momentum" (the structure of params)
network    JSON: format, source, epoch, best accuracy, optimizer settings, the steps that each BatchNorm has seen
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from rgbd_jax.config import default_config
from rgbd_jax.models.fusion import FusionNetwork
from rgbd_jax.models.network import MotionNetwork
from rgbd_jax.pytorch.checkpoint_file import CheckpointFileError
from rgbd_jax.pytorch.detect import DetectedNetwork, detect_network
from rgbd_jax.pytorch.name_table import ConversionError, entries
from rgbd_jax.pytorch.state_dict import Match, from_pytorch, in_reference_order, match_tensors, misfit, to_pytorch
from rgbd_jax.pytorch.weights import TrainedWeights

FORMAT = 1
Tree = Mapping[str, Any]


def is_converted(path: Path) -> bool:
    """Returns whether a path is a converted checkpoint."""
    return (path / "network" / "metadata").is_file()


def network_shapes(detected: DetectedNetwork) -> tuple[Tree, ...]:
    """Returns shapes and types of the parameters and running statistics of a network."""
    config = default_config("fusion" if detected.fusion else "rgb")
    for name, value in detected.model.items():
        config.model[name] = value
    if detected.frames:
        config.clip.frames = detected.frames
    network_type = FusionNetwork if detected.fusion else MotionNetwork
    network = nnx.eval_shape(lambda: network_type(config, detected.model["num_classes"]))
    return tuple(nnx.to_pure_dict(nnx.state(network, kind)) for kind in (nnx.Param, nnx.BatchStat))


class MatchedNetwork(NamedTuple):
    """A network of the reference that weights are of.

    Attributes:
        detected: what the tensors say of it.
        shapes: shapes and types of its parameters and of its running statistics.
        match: how its tensors and those of the weights met.
    """

    detected: DetectedNetwork
    shapes: tuple[Tree, ...]
    match: Match


def match_network(weights: TrainedWeights) -> MatchedNetwork:
    """Returns the network that weights are of.

    Raises:
        ConversionError: they are of no network of the reference, or lists every tensor that is missing or misshapen.
    """
    detected = detect_network(weights.tensors)
    shapes = network_shapes(detected)
    match = match_tensors(weights.tensors, *shapes)
    if problems := match.problems():
        raise misfit(problems)
    return MatchedNetwork(detected, shapes, match)


def save_converted(path: Path, weights: TrainedWeights, network: MatchedNetwork, source: str) -> None:
    """Writes a converted checkpoint; it appears under its name only when it is complete.

    Args:
        path: the folder, which must not exist.
        weights: what is converted; tensors that are not of its network are left out.
        network: the network that they are of.
        source: what is noted as its origin.

    Raises:
        ConversionError: tensors that are stacked here have different types of numbers.
        FileExistsError: there is something at `path` already.
    """
    params, batch_stats = (_typed(tree, weights.tensors) for tree in network.shapes)
    fitting = {name: weights.tensors[name] for name in network.match.loaded}
    params, batch_stats = from_pytorch(fitting, params, batch_stats)
    tree: dict[str, Any] = {"params": params, "batch_stats": batch_stats}
    without_momentum = []
    if weights.momentum:
        names = list(to_pytorch(params, {}))
        without_momentum = [name for name in names if name not in weights.momentum]
        dtype = next(iter(weights.momentum.values())).dtype
        zeros = {name: np.zeros(weights.tensors[name].shape, dtype) for name in without_momentum}
        buffers = {name: weights.momentum[name] for name in names if name in weights.momentum} | zeros
        tree["momentum"] = from_pytorch(buffers, _typed(params, buffers), {})[0]
    record = {
        "format": FORMAT,
        "source": source,
        "steps_seen": {name: int(weights.tensors[name]) for name in network.match.counters},
        "without_momentum": without_momentum,
        **weights.record(),
    }
    items = ocp.args.Composite(weights=ocp.args.PyTreeSave(tree), network=ocp.args.JsonSave(record))
    # Weights hardly shrink when compressed; without it writing takes half the time. Orbax would copy all arrays first,
    # so that they may change while it writes; here nobody has them to change.
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns without one
    )
    handlers = {
        "weights": ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry),
        "network": ocp.JsonCheckpointHandler(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
        checkpointer.save(path.absolute(), args=items)


def load_converted(path: Path) -> TrainedWeights:
    """Returns the weights of a converted checkpoint.

    Raises:
        CheckpointFileError: it is damaged, or was written by a version of this package that is not known.
    """
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                path.absolute(),
                args=ocp.args.Composite(weights=ocp.args.PyTreeRestore(), network=ocp.args.JsonRestore()),
            )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise CheckpointFileError(
            f"{path}: a damaged converted checkpoint; convert its source again: {error}"
        ) from error
    record, tree = restored.network, restored.weights
    if record.get("format") != FORMAT:
        raise CheckpointFileError(
            f"{path}: a converted checkpoint of format {record.get('format')!r}, expected {FORMAT}; convert its "
            "source again with this version"
        )
    counters = {name: np.asarray(value, np.int64) for name, value in record["steps_seen"].items()}
    momentum = to_pytorch(tree["momentum"], {}) if "momentum" in tree else {}
    absent = set(record["without_momentum"])
    return TrainedWeights(
        in_reference_order(to_pytorch(tree["params"], tree["batch_stats"]) | counters),
        {name: buffer for name, buffer in momentum.items() if name not in absent},
        record["epoch"],
        record["best_accuracy"],
        record["optimizer"],
        reference_layout=record["reference_layout"],
    )


def _typed(tree: Tree, tensors: Mapping[str, np.ndarray]) -> dict:
    """Returns the shapes of a tree with the types that its tensors have in a file."""
    types: dict[tuple[str, ...], set[np.dtype]] = {}
    for entry in entries(tree):
        types.setdefault(entry.path, set()).add(tensors[entry.pytorch_name].dtype)
    mixed = [".".join(path) for path, found in types.items() if len(found) > 1]
    if mixed:
        raise ConversionError(f"blocks of one stack have different types of numbers: {', '.join(mixed)}")
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict(
        {path: jax.ShapeDtypeStruct(leaf.shape, min(types[path], key=str)) for path, leaf in flat.items()}
    )
