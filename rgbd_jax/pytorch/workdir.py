"""Reads the weights of a run of this package."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rgbd_jax import optim
from rgbd_jax.checkpoint.checkpoints import accuracy_by_epoch, best_epoch, find, read_metadata
from rgbd_jax.checkpoint.model_card import ModelCardData
from rgbd_jax.checkpoint.workdir import CONFIG_FILE, read_class_names, read_config
from rgbd_jax.pytorch.state_dict import COUNTER, in_reference_order, to_pytorch
from rgbd_jax.pytorch.weights import SGD_GROUP, TrainedWeights


def is_workdir(path: Path) -> bool:
    """Returns whether a path is the workdir of a run."""
    return (path / CONFIG_FILE).is_file()


def load_workdir(path: Path, which: str = "best") -> TrainedWeights:
    """Returns the weights of a run's "best" or "latest" checkpoint, under the reference's names.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
    """
    config = read_config(path)
    checkpoint = find(path, which, evaluated=True)
    metadata = read_metadata(checkpoint)
    history = metadata.history
    folder = checkpoint / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder.absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        state = checkpointer.restore(folder.absolute(), restore_args=as_numpy)
    tensors = to_pytorch(state["params"], state["batch_stats"])
    counters = {
        name.removesuffix("running_var") + COUNTER: np.asarray(state["step"], np.int64)
        for name in tensors
        if name.endswith("running_var")
    }
    settings, epoch = config["optimizer"], history[-1]["epoch"]
    sgd = settings["name"] == "sgd"
    group = {
        **SGD_GROUP,
        "lr": optim.learning_rate(config, epoch, accuracy_by_epoch(history)),
        "momentum": settings["momentum"],
        "weight_decay": settings["weight_decay"],
    }
    return TrainedWeights(
        in_reference_order(tensors | counters),
        to_pytorch(_momentum(state), {}) if sgd else {},
        epoch,
        best_epoch(history, config.checkpoint)[config.checkpoint.best_metric],
        group if sgd else {},
        reference_layout=config["fusion"]["reference_layout"] if config["modality"] == "fusion" else None,
        card=ModelCardData(metadata.config, history, metadata.provenance, read_class_names(path)),
    )


def _momentum(state: dict[str, Any]) -> dict:
    """Returns the momentum as a tree like that of the parameters; format version 1 has it as one vector."""
    momentum: list[Any] = []
    jax.tree.map(
        lambda part: momentum.append(part["trace"]),
        state["optimizer_state"],
        is_leaf=lambda part: isinstance(part, dict) and "trace" in part,
    )
    if isinstance(momentum[0], dict):
        return momentum[0]
    (flat,) = momentum
    leaves, structure = jax.tree.flatten(state["params"])
    parts = np.split(np.asarray(flat), np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])
