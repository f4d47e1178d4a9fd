"""Checkpoints of a run: train state, data iterator, metrics and config, saved together or not at all.

`WORKDIR/checkpoints` holds those of evaluated epochs, `WORKDIR/recovery` those saved mid-epoch, each in a folder named
by its step. A folder gets this name when everything is on disk, with checksums of its files. In object storage, where
nothing can be renamed, it has the name at once, and Orbax adds an object when it is complete.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN, PreservationPolicy

from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.metrics import from_json, to_json_able
from rgbd_jax.parallel import distributed
from rgbd_jax.regular_files import check_regular
from rgbd_jax.storage import absolute, files_below, is_remote, move, size

EPOCHS, RECOVERY, DAMAGED = "checkpoints", "recovery", "damaged"
CHECKSUMS_FILE = "checksums.json"
PAUSES = (1, 5)  # seconds after which a disk that cannot be read is tried again
_WRITTEN_LATER = "_CHECKPOINT_METADATA"  # where Orbax writes the time of the commit, after everything else

log = logging.getLogger("rgbd_jax")


class SaveError(OSError):
    """A checkpoint could not be written; those before it are intact."""


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """Everything in a checkpoint but the train state, JSON-able."""

    data_iterator: Mapping[str, Any]  # its state
    history: Sequence[Mapping[str, Any]]  # step, epoch and validation metrics of every evaluated epoch
    accumulated: Sequence[Mapping[str, float]] = ()  # metrics of the steps since the last line of the log
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see `provenance.provenance`
    last_epoch: int = 0  # the epoch, counted from 0, of the last step


class CheckpointManager:
    """Writes the checkpoints of a run in the background and deletes those that `config.checkpoint` does not keep.

    SaveError, that a checkpoint could not be written, is raised by the same or the next call.
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
        if any(step in self._managers[other].all_steps() for other in {kind, EPOCHS}):
            return  # a request to stop came right after a save
        contents = ocp.args.JsonSave(to_json_able(dataclasses.asdict(metadata)))
        with self._errors_named(kind, step):
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=contents)
            self._managers[kind].save(step, args=items, metrics=to_json_able(metrics))

    def check_for_errors(self) -> None:
        """Checks that nothing has failed in the background so far."""
        for kind, manager in self._managers.items():
            with self._errors_named(kind, manager.latest_step()):
                manager.check_for_errors()

    def close(self) -> None:
        """Waits until every checkpoint is on disk."""
        for kind, manager in self._managers.items():
            with self._errors_named(kind, manager.latest_step()):
                manager.close()

    @contextlib.contextmanager
    def _errors_named(self, kind: str, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise all kinds
            earlier = list_checkpoints(self._workdir)
            intact = f"{earlier[0]} is intact" if earlier else "there is no earlier one"
            raise SaveError(
                f"the checkpoint of step {step} cannot be written to {self._workdir / kind}: {_cause(error)}; "
                f"{intact}: make room or lift the restriction, and run the same command again"
            ) from error


def list_checkpoints(workdir: Path) -> list[Path]:
    """Returns the folders of all checkpoints, newest first; of two of one step the evaluated one first."""
    paths = [path for kind in (RECOVERY, EPOCHS) for path in (workdir / kind).glob("*") if path.name.isdigit()]
    folders = [path for path in paths if not is_remote(path) or ocp.utils.is_checkpoint_finalized(path)]
    return sorted(folders, key=lambda path: (int(path.name), path.parent.name == EPOCHS), reverse=True)


def find(workdir: Path, which: str, *, evaluated: bool = False) -> Path:
    """Returns the folder of the "best" or "latest" intact checkpoint of a run; the log names damaged ones.

    Mid-epoch checkpoints are never the "best", and with `evaluated` not the "latest" either. Raises FileNotFoundError
    if there is none, and ValueError if all of them are damaged.
    """
    folders = list_checkpoints(workdir)
    if evaluated or which == "best":
        folders = [folder for folder in folders if folder.parent.name == EPOCHS]
    if not folders:
        raise FileNotFoundError(f"{workdir} has no checkpoint of a whole epoch yet; train until the first evaluation")
    damages = []

    def is_intact(folder: Path) -> bool:
        if damage := _find_damage(folder):
            log.warning("the checkpoint %s is damaged: %s", folder, damage)
            damages.append(damage)
        return not damage

    intact = filter(is_intact, folders)
    if which == "best":
        config = read_config(workdir).checkpoint
        found = max(intact, key=lambda folder: _score(read_metadata(folder).history[-1], config), default=None)
    else:
        found = next(intact, None)
    if found is None:
        advice = "every checkpoint is damaged; to train from the start, delete them and use --restart:"
        raise ValueError("\n  ".join([f"{workdir}: {advice}", *damages]))
    return found


def restore_latest(workdir: Path, abstract_state: Any, sharding: Any) -> tuple[Any, CheckpointMetadata]:
    """Returns state and metadata of the latest intact checkpoint, of a run that has checkpoints.

    Later ones, which are damaged, are moved to `WORKDIR/damaged`. All processes have to call it.
    """
    folders, folder = list_checkpoints(workdir), find(workdir, "latest")
    distributed.barrier("the latest checkpoint is found")
    if distributed.is_primary():
        for damaged in folders[: folders.index(folder)]:
            target = workdir / DAMAGED / damaged.parent.name / damaged.name
            while target.exists():
                target = target.with_name(f"{target.name}_again")
            move(damaged, target)
    return read_state(folder, abstract_state, sharding), read_metadata(folder)


def read_state(folder: Path, abstract_state: Any, sharding: Any) -> Any:
    """Returns the train state of a checkpoint, which may have been written by another number of processes.

    Raises ValueError if it cannot be read, or is of another network.
    """
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract_state, sharding
    )
    # The handler itself: a Checkpointer waits for the other processes, which may have met an error.
    handler, path = ocp.StandardCheckpointHandler(), absolute(folder / "state")
    try:
        old, new = _shapes(handler.metadata(path)), _shapes(target)
        if old == new:
            return handler.restore(path, args=ocp.args.StandardRestore(target))
    except Exception as error:  # Orbax and TensorStore raise all kinds
        raise ValueError(f"{folder} cannot be read: {_cause(error)}") from error
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    shown = [f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} here" for name in names[:8]]
    more = [f"and {len(names) - 8} more"] if len(names) > 8 else []
    raise ValueError("\n  ".join([f"{folder} is of another network or optimizer than the config's:", *shown, *more]))


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Returns everything in a checkpoint but the train state."""
    try:
        fields = ocp.JsonCheckpointHandler().restore(absolute(folder / "metadata"))
        for name in ("history", "accumulated"):
            fields[name] = [from_json(metrics) for metrics in fields[name]]
        return CheckpointMetadata(**fields)
    except (TypeError, KeyError, AttributeError) as error:
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
        # Only the one that is about to get its name, or to be marked as complete.
        for unfinished in folder.glob("*" if is_remote(folder) else "*.orbax-checkpoint-tmp*"):
            if not is_remote(folder) or not ocp.utils.is_checkpoint_finalized(unfinished):
                _write_checksums(unfinished)

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
    return _OrbaxManager(absolute(folder), options=options)


def _score(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    sign = -1 if config["best_is"] == "lowest" else 1
    value = metrics.get(config["best_metric"])
    return -math.inf if value is None or math.isnan(value) else sign * value


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return {name: tuple(leaf.shape) for name, leaf in named.items() if hasattr(leaf, "shape")}


def _cause(error: BaseException) -> str:
    """Returns the cause of an error of Orbax, without the many lines of TensorStore."""
    text = " ".join(str(error).split()) or type(error).__name__
    causes = ("No space left on device", "Read-only file system", "Permission denied", "Disk quota exceeded")
    return next((cause for cause in causes if cause in text), text[:400])


def _write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file under a folder: TensorStore verifies its index, but not the chunks of data.

    In object storage, which verifies the content itself, the size.
    """
    files = [path for path in files_below(folder) if path.name not in (CHECKSUMS_FILE, _WRITTEN_LATER)]
    checksums = {str(path.relative_to(folder)): _checksum(path, is_remote(folder)) for path in files}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=0, sort_keys=True))


def _find_damage(folder: Path) -> str | None:
    """Returns which file of a checkpoint is damaged and how, None if all are as they were written.

    A disk or network that fails, also when tried again, is no damage, but an OSError.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return _damage(folder)
        except OSError as error:
            if (pause := next(pauses, None)) is None:
                advice = "restore access to it; to resume from an earlier checkpoint, move this one away"
                raise OSError(f"{folder} cannot be read: {error}; {advice}") from error
            log.warning("%s cannot be read (%s): trying again in %d s", folder, error, pause)
            time.sleep(pause)


def _damage(folder: Path) -> str | None:
    file = folder / CHECKSUMS_FILE
    try:
        check_regular(file)
        for name, checksum in json.loads(file.read_bytes()).items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if _checksum(folder / name, checksum.endswith("bytes")) != checksum:
                return f"{folder / name} differs from what was written (checksum)"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, AttributeError) as error:
        return f"{file} cannot be used: {error}"
    return None


def _checksum(path: Path, size_only: bool) -> str:
    if size_only:
        return f"{size(path)} bytes"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
