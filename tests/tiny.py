"""The demo's config, shrunk so that a training takes seconds, and runs of it."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict
from rgbd_jax.configs import demo, umdr_demo
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from rgbd_jax.checkpoint.checkpoints import CheckpointManager, CheckpointMetadata, find, read_state
from rgbd_jax.checkpoint.workdir import write_config
from rgbd_jax.model import Model
from rgbd_jax.step import Steps, TrainState, new_state


def tiny_config(data_dir: Path, stream: str = "rgb") -> ConfigDict:
    """Returns a config of 8 frames of 32x32 pixels, an eighth of the width, 3 steps of 16 clips an epoch.

    The stream is a modality, or "umdr_" and one of them for UMDR.
    """
    umdr = stream.startswith("umdr_")
    config = umdr_demo.get_config(stream.removeprefix("umdr_")) if umdr else demo.get_config(stream)
    config.data.data_dir = str(data_dir)
    config.clip.frames = 8
    config.clip.size = 32
    config.model.width = 0.125
    config.model.branch_frames = (2, 4, 6)
    config.model.temporal_blocks = 3 if umdr else 1
    config.model.recoupling_hidden = 16
    config.fusion.spatial_blocks, config.fusion.temporal_blocks = 1, 2
    config.schedule.warm_up_epochs = 0
    config.train.batch_size = 16
    config.train.epochs = 2
    config.train.log_every_steps = 1
    config.eval.batch_size = 16
    config.lock()
    return config


def run_command(command: ModuleType, *arguments: object, overrides: Sequence[str] = ()) -> None:
    """Runs a command in this process, without what `console.run` sets up."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.set_defaults(overrides=overrides)
    command.run(parser.parse_args([*map(str, arguments)]))


def saved_state(config: ConfigDict, workdir: Path, which: str = "latest", classes: int = 12) -> TrainState:
    """Returns the train state of the "latest" or "best" checkpoint of a run."""
    steps = Steps(Model(config, classes))
    return read_state(find(workdir, which), steps.shapes, steps.sharding)


def save_run(
    config: ConfigDict,
    workdir: Path,
    state: TrainState | None = None,
    provenance: Mapping[str, Any] | None = None,
    **figures: float,
) -> Path:
    """Makes the workdir of a run that saved once; returns it.

    Args:
        config: of the run.
        workdir: the folder.
        state: what it saved; by default, after three steps, the random weights it began with.
        provenance: what produced it.
        **figures: what its evaluation said, instead of top-1 0.5 after epoch 1.
    """
    write_config(workdir, config, CLASS_NAMES)
    if state is None:
        model = Model(config, len(CLASS_NAMES))
        state = dataclasses.replace(new_state(model, *model.init(0)), step=jnp.asarray(3, jnp.int32))
    history = [{"step": int(state.step), "epoch": 1, "top1": 0.5, **figures}]
    checkpoints = CheckpointManager(workdir, config.checkpoint)
    checkpoints.save(
        state, CheckpointMetadata({}, history, config=config.to_dict(), provenance=provenance or {}), history[-1]
    )
    checkpoints.close()
    return workdir
