"""Checkpoints of a workdir: state, place in the data and history in one save; the latest and the best are kept."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from rgbd_jax.steps import TrainState

CONFIG_FILE = "config.json"
# Fields that may change between two runs in one workdir: they decide how long, how fast or from where, not what.
FREE_FIELDS = (
    "data.data_dir", "data.raw_dir", "data.skip_bad_clips", "data.workers", "data.eval_split", "train.epochs",
    "train.log_every_steps", "eval.batch_size", "eval.clips", "eval.crops", "init_from", "continue_from",
    "fusion.init_rgb_from", "fusion.init_depth_from",
)  # fmt: skip


class Checkpoints:
    """The checkpoints of a workdir.

    Args:
        workdir: the run's folder.
        best_metric: name of the validation metric whose highest value makes a checkpoint the best.
        read_only: whether the workdir is left as it is (evaluation).
    """

    def __init__(self, workdir: Path, best_metric: str, *, read_only: bool = False):
        self._best_metric = best_metric
        best = BestN(get_metric_fn=lambda metrics: metrics[best_metric], reverse=False, n=1)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
        )
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    @staticmethod
    def exist(workdir: Path) -> bool:
        """Returns whether a run has left a checkpoint."""
        return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))

    def save(self, state: TrainState, data: Mapping[str, Any], history: list[dict]) -> None:
        """Saves, asynchronously, under the state's step.

        Args:
            state: the train state.
            data: the data iterator's state, JSON-able.
            history: step and validation metrics of every finished epoch; the last are those of this state.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), history=ocp.args.JsonSave(history)
        )
        self._manager.save(int(state.step), args=items, metrics=history[-1])

    def step_of(self, which: str) -> int | None:
        """Returns the step of the "latest" or "best" checkpoint, None if there is none."""
        if which == "latest":
            return self._manager.latest_step()
        history = self.history()
        return best_epoch(history, self._best_metric)["step"] if history else None

    def history(self) -> list[dict]:
        """Returns step and validation metrics of every finished epoch, as the latest checkpoint has them."""
        step = self._manager.latest_step()
        if step is None:
            return []
        return self._manager.restore(step, args=ocp.args.Composite(history=ocp.args.JsonRestore())).history

    def restore(self, step: int, like: TrainState, sharding: Sharding) -> tuple[TrainState, Mapping[str, Any]]:
        """Returns the train state and the data iterator's state of a checkpoint.

        Args:
            step: which checkpoint.
            like: a state of the same shapes and types (`jax.eval_shape` of one will do).
            sharding: where the arrays of the state are to lie.

        Raises:
            ValueError: the checkpoint is of another network.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored.state, restored.data

    def close(self) -> None:
        """Waits until every save is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def best_epoch(history: list[dict], metric: str) -> dict:
    """Returns the epoch with the highest metric, of equals the latest, which is the one that is kept."""
    return max(history, key=lambda epoch: (epoch[metric], epoch["step"]))


def accuracy_by_epoch(history: list[dict]) -> list[float]:
    """Returns the validation top-1 of every epoch up to the last, not a number where it was not measured."""
    known = {epoch["epoch"]: epoch["top1"] for epoch in history}
    return [known.get(epoch, math.nan) for epoch in range(1, max(known, default=0) + 1)]


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir and writes the config into it, if they are not there yet."""
    file = workdir / CONFIG_FILE
    if jax.process_index() == 0 and not file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config.to_dict(), indent=1) + "\n")


def check_workdir(workdir: Path, config: ConfigDict, *, new_allowed: bool) -> None:
    """Checks that a workdir's run has this config, but for the fields that may change.

    Args:
        workdir: the run's folder.
        config: the experiment's config.
        new_allowed: whether an empty or missing workdir will do too.

    Raises:
        ValueError: the workdir holds a run of another config (names every field), or something else.
        FileNotFoundError: there is no run, and there has to be one.
    """
    file = workdir / CONFIG_FILE
    if not file.exists():
        if not new_allowed and workdir.is_file():
            raise ValueError(
                f"--workdir={workdir} is a file; convert it first: python -m rgbd_jax.convert {workdir} NAME"
            )
        if not new_allowed:
            raise FileNotFoundError(f"{workdir} holds no run: {file} does not exist; train first, or check the path")
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise ValueError(f"--workdir={workdir} is neither a run's folder nor empty; give another one")
        return
    there, here = _flatten(json.loads(file.read_text())), _flatten(json.loads(json.dumps(config.to_dict())))
    differing = [
        f"config.{name}: {there.get(name, 'absent')!r} there, {here.get(name, 'absent')!r} here"
        for name in sorted(there.keys() | here.keys())
        if name not in FREE_FIELDS and there.get(name) != here.get(name)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of another config; give another --workdir, or the same config:\n  "
            + "\n  ".join(differing)
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
