"""Checkpoints of a run: train state, data iterator, metrics and config, saved together or not at all.

`WORKDIR/checkpoints` holds those of evaluated epochs, `WORKDIR/recovery` those saved mid-epoch, each in a folder named
by its step. A folder gets this name when everything is on disk, with checksums of its files.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN, PreservationPolicy

from rgbd_jax.checkpoint.integrity import find_damage, write_checksums
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.parallel import distributed

EPOCHS, RECOVERY, DAMAGED = "checkpoints", "recovery", "damaged"

log = logging.getLogger("rgbd_jax")


class SaveError(OSError):
    """A checkpoint could not be written; those before it are intact."""


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """Everything in a checkpoint but the train state, JSON-able.

    Attributes:
        data_iterator: state of the data iterator.
        history: step, epoch and validation metrics of every evaluated epoch.
        accumulated: metrics of the steps since the last line of the log.
        config: the experiment's config.
        provenance: see `provenance.provenance`.
        last_epoch: the epoch, counted from 0, of the last step.
    """

    data_iterator: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    accumulated: Sequence[Mapping[str, float]] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    last_epoch: int = 0


class CheckpointManager:
    """Writes the checkpoints of a run in the background and deletes those that `config.checkpoint` does not keep.

    Raises:
        SaveError: a checkpoint could not be written, found out by this or the next call.
    """

    def __init__(self, workdir: Path, config: ConfigDict):
        self._workdir = workdir
        best = BestN(get_metric_fn=functools.partial(_score, config=config), n=config.keep_best)
        epochs = AnyPreservationPolicy([LatestN(config.keep_latest), best, _EveryEpochs(config.keep_every_epochs)])
        self._managers = {
            EPOCHS: _orbax_manager(workdir / EPOCHS, epochs),
            RECOVERY: _orbax_manager(workdir / RECOVERY, LatestN(config.keep_latest)),
        }

    def save(self, state: Any, metadata: CheckpointMetadata, metrics: Mapping[str, Any] | None = None) -> None:
        """Saves an evaluated epoch with its metrics, or a mid-epoch checkpoint, under the state's step.

        Returns when the state may be donated, before everything is on disk.
        """
        kind = RECOVERY if metrics is None else EPOCHS
        # Orbax synchronises the processes itself: its messages must not meet those of a step that is still running.
        step = int(jax.block_until_ready(state).step)
        contents = ocp.args.JsonSave(dataclasses.asdict(metadata))
        with self._save_errors(kind, step):
            if any(step in self._managers[other].all_steps() for other in {kind, EPOCHS}):
                return  # a request to stop came right after a save
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=contents)
            self._managers[kind].save(step, args=items, metrics=metrics)

    def check_for_errors(self) -> None:
        """Checks that nothing has failed in the background so far."""
        for kind, manager in self._managers.items():
            with self._save_errors(kind, manager.latest_step()):
                manager.check_for_errors()

    def close(self) -> None:
        """Waits until every checkpoint is on disk."""
        for kind, manager in self._managers.items():
            with self._save_errors(kind, manager.latest_step()):
                manager.close()

    @contextlib.contextmanager
    def _save_errors(self, kind: str, step: int | None) -> Iterator[None]:
        try:
            yield
        except SaveError:
            raise
        except Exception as error:  # Orbax and TensorStore raise all kinds
            earlier = list_checkpoints(self._workdir)
            intact = f"{earlier[0]} is intact" if earlier else "there is no earlier one"
            raise SaveError(
                f"the checkpoint of step {step} cannot be written to {self._workdir / kind}: {_cause(error)}; "
                f"{intact}: make room or lift the restriction, and run the same command again"
            ) from error


def list_checkpoints(workdir: Path) -> list[Path]:
    """Returns the folders of all checkpoints, newest first; of two of one step the evaluated one first."""
    folders = [path for kind in (RECOVERY, EPOCHS) for path in (workdir / kind).glob("*") if path.name.isdigit()]
    return sorted(folders, key=lambda path: (int(path.name), path.parent.name == EPOCHS), reverse=True)


def find(workdir: Path, which: str, *, evaluated: bool = False) -> Path:
    """Returns the folder of the "best" or "latest" intact checkpoint of a run; the log names damaged ones.

    Mid-epoch checkpoints are never the "best", and with `evaluated` not the "latest" either.

    Raises:
        FileNotFoundError: there is none.
        ValueError: all of them are damaged.
    """
    folders = list_checkpoints(workdir)
    if evaluated or which == "best":
        folders = [folder for folder in folders if folder.parent.name == EPOCHS]
    if not folders:
        raise FileNotFoundError(f"{workdir} has no checkpoint of a whole epoch yet; train until the first evaluation")
    if which == "best":
        config = read_config(workdir).checkpoint
        folders = sorted(folders, key=lambda folder: _score(_read_metrics(folder), config), reverse=True)
    for folder in folders:
        if (damage := find_damage(folder)) is None:
            return folder
        log.warning("the checkpoint %s is damaged: %s", folder, damage)
    raise ValueError(f"{workdir}: every checkpoint is damaged")


def restore_latest(workdir: Path, abstract_state: Any, sharding: Any) -> tuple[Any, CheckpointMetadata]:
    """Returns state and metadata of the latest intact checkpoint, of a run that has checkpoints.

    Damaged ones are named in the log and moved to `WORKDIR/damaged`. All processes have to call it.

    Raises:
        ValueError: all of them are damaged, or the latest one is of another network or version.
    """
    folders, problems = list_checkpoints(workdir), []
    distributed.barrier("the checkpoints are listed")
    if distributed.is_primary():
        for folder in folders:
            if (damage := find_damage(folder)) is None:
                break
            log.warning("the checkpoint %s is damaged: %s; using the one before it", folder, damage)
            problems.append(damage)
            _set_aside(folder, workdir / DAMAGED / folder.parent.name / folder.name)
    damaged = int(multihost_utils.broadcast_one_to_all(np.asarray(len(problems))))
    if damaged == len(folders):
        moved = f"{workdir}: every checkpoint is damaged (moved to {workdir / DAMAGED}):"
        raise ValueError("\n  ".join([moved, *problems]))
    return read_state(folders[damaged], abstract_state, sharding), read_metadata(folders[damaged])


def read_state(folder: Path, abstract_state: Any, sharding: Any) -> Any:
    """Returns the train state of a checkpoint, which may have been written by another number of processes.

    Raises:
        ValueError: it cannot be read, or is of another network; names the first tensors that differ.
    """
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract_state, sharding
    )
    # The handler itself: a Checkpointer waits for the other processes, which may have met an error.
    handler, path = ocp.StandardCheckpointHandler(), (folder / "state").absolute()
    try:
        differing = _differing_shapes(handler.metadata(path), target)
        if not differing:
            return handler.restore(path, args=ocp.args.StandardRestore(target))
    except Exception as error:  # Orbax and TensorStore raise all kinds
        raise ValueError(f"{folder} cannot be read: {_cause(error)}") from error
    shown = differing if len(differing) <= 8 else [*differing[:8], f"and {len(differing) - 8} more"]
    raise ValueError("\n  ".join([f"{folder} is of another network or optimizer than the config's:", *shown]))


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Returns everything in a checkpoint but the train state.

    Raises:
        ValueError: it cannot be read, or was written by another version of this package.
    """
    try:
        contents = ocp.JsonCheckpointHandler().restore((folder / "metadata").absolute())
        return CheckpointMetadata(**contents)
    except TypeError as error:
        raise ValueError(f"{folder} was written by another version of rgbd_jax, use that one: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read: {_cause(error)}") from error


def best_epoch(history: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the best of the evaluated epochs by `config.checkpoint`; of equals the latest, as Orbax keeps it."""
    return max(reversed(history), key=lambda epoch: _score(epoch, config))


def accuracy_by_epoch(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the validation top-1 of every epoch up to the last, NaN where it was not measured."""
    known = {epoch["epoch"]: epoch["top1"] for epoch in history}
    return [known.get(epoch, math.nan) for epoch in range(1, max(known, default=0) + 1)]


@dataclasses.dataclass(frozen=True)
class _EveryEpochs(PreservationPolicy):
    n: int  # 0: none

    def should_preserve(self, checkpoints, *, context):
        return [bool(self.n and info.metrics and info.metrics["epoch"] % self.n == 0) for info in checkpoints]


class _OrbaxManager(ocp.CheckpointManager):
    """Leaves JAX's preemption sync points to `PreemptionSync`: Orbax would pass them numbers of its own."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training decides when it saves."""
        return False


def _orbax_manager(folder: Path, policy: PreservationPolicy) -> ocp.CheckpointManager:
    def add_checksums() -> None:
        for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):  # only the one that is about to get its name
            write_checksums(unfinished)

    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=True,
        save_interval_steps=1,
        async_options=ocp.options.AsyncOptions(
            post_finalization_callback=add_checksums,
            create_directories_asynchronously=False,  # else a folder that cannot be made is an error after ten minutes
        ),
        multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name),
    )
    return _OrbaxManager(folder.absolute(), options=options)


def _score(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    sign = -1 if config["best_is"] == "lowest" else 1
    return sign * metrics.get(config["best_metric"], -sign * math.inf)


def _read_metrics(folder: Path) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError):
        return read_metadata(folder).history[-1]
    return {}  # damaged: its checksum differs


def _set_aside(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    while target.exists():
        target = target.with_name(f"{target.name}_again")
    folder.rename(target)


def _differing_shapes(there: Any, here: Any) -> list[str]:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
        return {name: tuple(leaf.shape) for name, leaf in named.items() if hasattr(leaf, "shape")}

    old, new = shapes(there), shapes(here)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} here" for name in names]


def _cause(error: BaseException) -> str:
    """Returns the cause of an error of Orbax, without the many lines of TensorStore."""
    text = " ".join(str(error).split()) or type(error).__name__
    causes = ("No space left on device", "Read-only file system", "Permission denied", "Disk quota exceeded")
    return next((cause for cause in causes if cause in text), text[:400])
