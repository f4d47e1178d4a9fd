"""Checkpoints of a run: train state, place in the data, figures and config in one save, or not at all.

`WORKDIR/checkpoints` holds those of evaluated epochs, `WORKDIR/recovery` those from amid an epoch, each in a folder
named by its step. A folder appears whole, when everything is on disk, and with checksums of its files.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN, PreservationPolicy

from rgbd_jax.checkpoint import format_1
from rgbd_jax.checkpoint.integrity import find_damage, write_checksums
from rgbd_jax.parallel import distributed
from rgbd_jax.step import TrainState

FORMAT_VERSION = 2  # of version 1 see `format_1`
EPOCHS, RECOVERY, DAMAGED = "checkpoints", "recovery", "damaged"
_TEMPORARY = "*.orbax-checkpoint-tmp*"

log = logging.getLogger("rgbd_jax")


class SaveError(OSError):
    """A checkpoint could not be written; those before it are intact."""


class OtherRunError(ValueError):
    """A checkpoint is whole, but of another network or a newer version."""


@dataclasses.dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints of evaluated epochs are kept; the fields are those of `config.checkpoint`.

    Attributes:
        best_metric: the validation metric by which checkpoints are compared.
        best_is: "highest" or "lowest".
        keep_best: how many of the best are kept.
        keep_latest: how many of the latest are kept; as many of those from amid an epoch.
        keep_every_epochs: those of every so many epochs are kept too; 0: none.
        every_steps: a checkpoint from amid an epoch is saved every so many steps; 0: only when asked to stop.
    """

    best_metric: str = "top1"
    best_is: str = "highest"
    keep_best: int = 1
    keep_latest: int = 2
    keep_every_epochs: int = 0
    every_steps: int = 0

    def policy(self) -> PreservationPolicy:
        """Returns what Orbax keeps."""
        best = BestN(
            get_metric_fn=lambda metrics: metrics[self.best_metric],
            reverse=self.best_is == "lowest",
            n=self.keep_best,
        )
        return AnyPreservationPolicy([LatestN(self.keep_latest), best, _EveryEpochs(self.keep_every_epochs)])

    def ranked(self, history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Returns evaluated epochs, the best first, of equals the latest, which is the one that is kept."""
        sign = -1 if self.best_is == "lowest" else 1
        return sorted(history, key=lambda epoch: (sign * epoch[self.best_metric], epoch["step"]), reverse=True)

    def best(self, history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Returns the best of the evaluated epochs."""
        return self.ranked(history)[0]


@dataclasses.dataclass(frozen=True)
class _EveryEpochs(PreservationPolicy):
    epochs: int

    def should_preserve(self, checkpoints, *, context):
        """Tells of each checkpoint whether it is kept."""
        del context
        return [bool(self.epochs and info.metrics and info.metrics["epoch"] % self.epochs == 0) for info in checkpoints]


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint holds beside the train state, JSON-able.

    Attributes:
        data: the data iterator's state.
        history: step, epoch and validation metrics of every evaluated epoch.
        recent: figures of the steps since the last line of the log.
        config: the experiment's config.
        provenance: what produced it (see `provenance.provenance`).
        last_epoch: the epoch, counted from 0, that the last step belongs to.
        format_version: version of the format.
    """

    data: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    recent: Sequence[Mapping[str, float]] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    last_epoch: int = 0
    format_version: int = FORMAT_VERSION


class Checkpoints:
    """Writes the checkpoints of a run, while the training goes on.

    Args:
        workdir: the run's folder.
        keep: which are kept.
    """

    def __init__(self, workdir: Path, keep: RetentionPolicy):
        self._workdir = workdir
        self._every_steps = keep.every_steps
        policies = {EPOCHS: keep.policy(), RECOVERY: LatestN(keep.keep_latest)}
        self._managers = {kind: self._manager(workdir / kind, policy) for kind, policy in policies.items()}

    def is_due(self, step: int) -> bool:
        """Returns whether a checkpoint from amid an epoch is to be saved at a step."""
        return self._every_steps > 0 and step % self._every_steps == 0

    def save(self, state: TrainState, run: CheckpointMetadata, metrics: Mapping[str, Any] | None = None) -> None:
        """Saves under the state's step; returns when the state may change again, before everything is on disk.

        Args:
            state: the train state.
            run: everything else.
            metrics: those of the evaluation of this state; None if it was not evaluated.

        Raises:
            SaveError: this checkpoint or the one before could not be written.
        """
        kind = RECOVERY if metrics is None else EPOCHS
        # On every device: Orbax has messages of its own for the group, which those of a step are not to meet.
        step = int(jax.block_until_ready(state).step)
        contents = json.loads(json.dumps(dataclasses.asdict(run)))  # as it is now: it is written later
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(contents))
        with self._errors_named(kind, step):
            if any(step in self._managers[other].all_steps() for other in {kind, EPOCHS}):
                return  # asked to stop right after a save
            self._managers[kind].save(step, args=items, metrics=metrics)

    def check(self) -> None:
        """Finds out whether everything so far was written.

        Raises:
            SaveError: it was not.
        """
        for kind, manager in self._managers.items():
            with self._errors_named(kind, manager.latest_step()):
                manager.check_for_errors()

    def close(self) -> None:
        """Waits until every save is on disk.

        Raises:
            SaveError: one could not be written.
        """
        for kind, manager in self._managers.items():
            with self._errors_named(kind, manager.latest_step()):
                manager.close()

    @staticmethod
    def _manager(folder: Path, policy: PreservationPolicy) -> ocp.CheckpointManager:
        def add_checksums() -> None:
            for unfinished in folder.glob(_TEMPORARY):  # there is just one, about to get its name
                write_checksums(unfinished)

        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            save_interval_steps=1,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=add_checksums,
                create_directories_asynchronously=False,  # else a folder that cannot be made is told after ten minutes
            ),
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name),
        )
        return _CheckpointManager(folder.absolute(), options=options)

    def _errors_named(self, kind: str, step: int | None) -> "_NamedErrors":
        return _NamedErrors(self._workdir, kind, step)


@dataclasses.dataclass(frozen=True)
class _NamedErrors:
    """Turns errors of Orbax into one that says which checkpoint could not be written, and what is left."""

    workdir: Path
    kind: str
    step: int | None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, SaveError | KeyboardInterrupt):
            return
        left = saved(self.workdir)
        intact = f"{left[0]} is intact" if left else "there is no earlier one"
        raise SaveError(
            f"the checkpoint of step {self.step} cannot be written to {self.workdir / self.kind}: {_reason(error)}; "
            f"{intact}: make room or lift the restriction, and run the same command again"
        ) from error


class _CheckpointManager(ocp.CheckpointManager):
    """Leaves JAX's preemption sync points, which it would number by steps, to `PreemptionSync`."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training decides when to save."""
        del step
        return False


def saved(workdir: Path) -> list[Path]:
    """Returns the folders of all checkpoints, newest first; of two of one step the evaluated one first."""
    found = [
        (int(path.name), kind == EPOCHS, path)
        for kind in (EPOCHS, RECOVERY)
        for path in (workdir / kind).glob("*")
        if path.name.isdigit()
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


def find(workdir: Path, which: str, keep: RetentionPolicy, *, evaluated: bool = False) -> Path:
    """Returns the folder of the "best" or "latest" checkpoint of a run; damaged ones are named in the log and passed.

    Args:
        workdir: the run's folder.
        which: "best" of those that are kept, or "latest".
        keep: tells what is best.
        evaluated: whether one from amid an epoch will not do.

    Raises:
        FileNotFoundError: there is none.
        ValueError: all of them are damaged.
    """
    folders = saved(workdir)
    epochs = [folder for folder in folders if folder.parent.name == EPOCHS]
    if not epochs and (evaluated or which == "best" or not folders):
        raise FileNotFoundError(f"{workdir} has no checkpoint of a whole epoch yet; train until the first evaluation")
    candidates = epochs if evaluated else folders
    if which == "best":
        there = {int(folder.name): folder for folder in epochs}
        ranked = keep.ranked([epoch for epoch in _history(folders) if epoch["step"] in there])
        candidates = [there[epoch["step"]] for epoch in ranked]
    for folder in candidates:
        if (damage := find_damage(folder)) is None:
            return folder
        log.warning("the checkpoint %s is damaged: %s", folder, damage)
    raise ValueError(f"{workdir}: every checkpoint is damaged")


def _history(folders: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """Returns the history of the newest checkpoint that can be read."""
    for folder in folders:
        try:
            return read_run(folder).history
        except OtherRunError:
            raise
        except ValueError as error:
            log.warning("the checkpoint %s is damaged: %s", folder, error)
    raise ValueError(f"{folders[0].parent.parent}: every checkpoint is damaged")


def read_run(folder: Path) -> CheckpointMetadata:
    """Returns what a checkpoint holds beside the train state.

    Raises:
        OtherRunError: it is of a newer format version.
        ValueError: it is damaged; names the folder.
    """
    try:
        if format_1.is_format_1(folder):
            data, history = format_1.read_items(folder)
            return CheckpointMetadata(data, history, last_epoch=history[-1]["epoch"] - 1, format_version=1)
        contents = ocp.JsonCheckpointHandler().restore((folder / "run").absolute())
        version = contents["format_version"]
        if version > FORMAT_VERSION:
            raise OtherRunError(
                f"{folder} is of format version {version}, this rgbd_jax reads up to {FORMAT_VERSION}: use a newer one"
            )
        return CheckpointMetadata(**contents)
    except OtherRunError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{folder}: {_reason(error)}") from error


def read_state(folder: Path, shapes: TrainState, sharding: Any) -> TrainState:
    """Returns the train state of a checkpoint, which may have been written by another number of processes.

    Args:
        folder: the checkpoint.
        shapes: shapes and types of the state.
        sharding: where its arrays are to lie, a tree like it.

    Raises:
        OtherRunError: the checkpoint is of another network; names the first tensors that differ.
        ValueError: the checkpoint is damaged; names the folder.
    """
    old = read_run(folder).format_version == 1
    there = format_1.with_vectors(shapes) if old else shapes
    lies = jax.tree.map(lambda _: sharding.step, there) if old else sharding
    target = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), there, lies)
    # The handler itself: a whole checkpointer waits for the other processes, which may have met an error.
    handler, path = ocp.StandardCheckpointHandler(), (folder / "state").absolute()
    try:
        described = handler.metadata(path)
    except Exception as error:  # Orbax and its store raise all kinds
        raise ValueError(f"{folder}: {_reason(error)}") from error
    if problems := _misfit(described, target):
        raise OtherRunError("\n  ".join([f"{folder} is of another network or optimizer than the config's:", *problems]))
    try:
        state = handler.restore(path, args=ocp.args.StandardRestore(target))
    except Exception as error:
        raise ValueError(f"{folder}: {_reason(error)}") from error
    if old:
        return jax.jit(lambda state: format_1.with_trees(state, shapes), out_shardings=sharding)(state)
    return state


def latest_intact(workdir: Path, shapes: TrainState, sharding: Any) -> tuple[TrainState, CheckpointMetadata]:
    """Returns the newest checkpoint that is not damaged, of a run that has checkpoints.

    Damaged ones are named in the log and moved to `WORKDIR/damaged`. All processes of a group have to call it.

    Raises:
        OtherRunError: a checkpoint is of another network, or of a newer version.
        ValueError: all of them are damaged.
    """
    problems = []
    for folder in saved(workdir):
        damage = find_damage(folder) if distributed.is_primary() else None
        found, problem = None, damage
        if distributed.all_agree(damage is None):
            try:
                found = read_state(folder, shapes, sharding), read_run(folder)
            except OtherRunError:
                raise
            except ValueError as error:
                problem = str(error)
        if distributed.all_agree(found is not None) and found is not None:
            return found
        problems.append(problem or "another process could not read it")
        log.warning("the checkpoint %s is damaged: %s; using the one before it", folder, problems[-1])
        if distributed.is_primary():
            _put_aside(folder, workdir)
        distributed.barrier(f"damage of {folder.name}")
    raise ValueError(
        "\n  ".join([f"{workdir}: every checkpoint is damaged (they lie in {workdir / DAMAGED} now):", *problems])
    )


def accuracy_by_epoch(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the validation top-1 of every epoch up to the last, not a number where it was not measured."""
    known = {epoch["epoch"]: epoch["top1"] for epoch in history}
    return [known.get(epoch, math.nan) for epoch in range(1, max(known, default=0) + 1)]


def _put_aside(folder: Path, workdir: Path) -> None:
    target = workdir / DAMAGED / folder.parent.name / folder.name
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}_{number}")
    folder.rename(target)


def _misfit(there: Any, here: Any) -> list[str]:
    """Returns a line for each of the first tensors that a checkpoint has otherwise than the state."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        return {
            ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path):
                tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if hasattr(leaf, "shape")
        }  # fmt: skip

    old, new = shapes(there), shapes(here)
    lines = [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return lines if len(lines) <= 8 else [*lines[:8], f"and {len(lines) - 8} more"]


def _reason(error: BaseException) -> str:
    """Returns what an error of Orbax says, without the many lines of its store."""
    text = " ".join(str(error).split()) or type(error).__name__
    for sign in ("No space left on device", "Read-only file system", "Permission denied", "Disk quota exceeded"):
        if sign in text:
            return sign
    return text if len(text) <= 400 else f"{text[:400]} ..."
