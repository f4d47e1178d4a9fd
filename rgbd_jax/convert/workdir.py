"""Reads the weights of a run of this package."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from rgbd_jax import optim
from rgbd_jax.checkpoint import CONFIG_FILE, Checkpoints, accuracy_by_epoch, best_epoch
from rgbd_jax.convert.state_dict import COUNTER, in_reference_order, to_pytorch
from rgbd_jax.convert.weights import SGD_GROUP, TrainedWeights


def is_workdir(path: Path) -> bool:
    """Returns whether a path is the workdir of a run."""
    return (path / CONFIG_FILE).is_file()


def load_workdir(path: Path, which: str = "best") -> TrainedWeights:
    """Returns the weights of a run's "best" or "latest" checkpoint, under the reference's names.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
    """
    config = json.loads((path / CONFIG_FILE).read_text())
    metric = config["checkpoint"]["best_metric"]
    checkpoints = Checkpoints(path, metric, read_only=True)
    step = checkpoints.step_of(which)
    if step is None:
        raise FileNotFoundError(f"{path} has no checkpoint yet; train until the first evaluation is done")
    history = [epoch for epoch in checkpoints.history() if epoch["step"] <= step]
    folder = path / "checkpoints" / str(step) / "state"
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
        "lr": optim.learning_rate(ConfigDict(config), epoch, accuracy_by_epoch(history)),
        "momentum": settings["momentum"],
        "weight_decay": settings["weight_decay"],
    }
    return TrainedWeights(
        in_reference_order(tensors | counters),
        to_pytorch(_momentum(state), {}) if sgd else {},
        epoch,
        best_epoch(history, metric)[metric],
        group if sgd else {},
        reference_layout=config["fusion"]["reference_layout"] if config["stream"] == "fusion" else None,
    )


def _momentum(state: dict[str, Any]) -> dict:
    """Returns the momentum as a tree like that of the parameters; the optimizer keeps it as one flat vector."""
    (flat,) = [leaf for leaf in jax.tree.leaves(state["optimizer_state"]) if np.ndim(leaf) == 1]
    leaves, structure = jax.tree.flatten(state["params"])
    parts = np.split(np.asarray(flat), np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])
