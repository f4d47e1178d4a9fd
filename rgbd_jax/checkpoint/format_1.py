"""Checkpoints of format version 1, of rgbd_jax before multi-host training: what differed, and how it is read."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.flatten_util import ravel_pytree

from rgbd_jax.optim import map_trees
from rgbd_jax.step import TrainState


def is_format_1(folder: Path) -> bool:
    """Returns whether a checkpoint has the items of version 1: `state`, `data` and `history`."""
    return (folder / "history").exists() and not (folder / "run").exists()


def read_items(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the data iterator's state, and step, epoch and metrics of every evaluated epoch.

    Raises:
        OSError, ValueError: the checkpoint is damaged.
    """
    handler = ocp.JsonCheckpointHandler()
    return handler.restore((folder / "data").absolute()), handler.restore((folder / "history").absolute())


def with_vectors(shapes: TrainState) -> TrainState:
    """Returns the shapes of a train state of version 1: where the optimizer now has trees, it had one vector each."""

    def vector(tree: Any) -> jax.ShapeDtypeStruct:
        leaves = jax.tree.leaves(tree)
        return jax.ShapeDtypeStruct((sum(leaf.size for leaf in leaves),), jnp.result_type(*leaves))

    return dataclasses.replace(shapes, optimizer_state=map_trees(vector, shapes.optimizer_state))


def with_trees(state: TrainState, shapes: TrainState) -> TrainState:
    """Returns a train state of version 1 in today's form.

    Args:
        state: as it was saved.
        shapes: today's shapes.
    """
    _, restore = ravel_pytree(state.params)
    trees = jax.tree.map(
        lambda part, saved: restore(saved) if isinstance(part, dict) else saved,
        shapes.optimizer_state,
        state.optimizer_state,
        is_leaf=lambda part: isinstance(part, dict),
    )
    return dataclasses.replace(state, optimizer_state=trees)
