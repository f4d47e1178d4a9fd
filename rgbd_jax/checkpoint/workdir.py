"""The folder of a run: its config and class names, and whether a command may resume it."""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.config import recorded_config
from rgbd_jax.config_rules import WRITERS
from rgbd_jax.storage import is_remote, size

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
LOCK_FILE = ".lock"
# Fields that may differ when a run is resumed: they decide how long, how fast or from where, not what.
MUTABLE_FIELDS = re.compile(
    r"init_from|continue_from|fusion\.init_(rgb|depth)_from"
    r"|data\.(data_dir|raw_dir|skip_bad_clips|workers|eval_split)"
    r"|train\.(epochs|log_every_steps|writers)|eval\.\w+|remat\.\w+|sharding\.\w+"
    r"|model\.operations|checkpoint\.(keep_best|keep_latest|keep_every_epochs|every_steps)"
)

log = logging.getLogger("rgbd_jax")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the workdir and holds its lock, so that one run alone writes to it; ValueError names who holds it already.

    The system releases the lock when the process ends, however it ends. A disk that cannot lock files, and object
    storage, are reported in the log, and nothing is locked.
    """
    if is_remote(workdir):
        log.warning("%s cannot be locked, as it is in object storage: start no second run in it", workdir)
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / LOCK_FILE).open("a+"))
        except OSError as error:
            advice = "lift the restriction, or give another --workdir"
            raise OSError(f"{workdir} cannot be written: {error.strerror}; {advice}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            user = file.read().strip() or "another process"
            raise ValueError(f"{workdir} is in use by {user}: wait until it ends, or stop it") from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second run in it", workdir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def write_config(workdir: Path, config: ConfigDict, class_names: Sequence[str]) -> None:
    """Makes the workdir and writes the config, if it has no run yet, and the class names into it."""
    file = workdir / CONFIG_FILE
    # An existing file is written again: a run that cannot save must fail now, not after an epoch.
    text = file.read_text() if has_run(workdir) else json.dumps(config.to_dict(), indent=1) + "\n"
    for path, contents in ((file, text), (workdir / CLASSES_FILE, json.dumps(list(class_names), indent=1) + "\n")):
        with atomic_write(path, "make room, lift the restriction, or give another --workdir") as unfinished:
            unfinished.write_text(contents)


def check_workdir(workdir: Path, config: ConfigDict, *, new_allowed: bool) -> None:
    """Checks that a workdir's run has this config, but for `MUTABLE_FIELDS`; a new one has to be empty or missing."""
    file = workdir / CONFIG_FILE
    if has_run(workdir) or (file.is_file() and not new_allowed):
        if differing := _differences(read_config(workdir).to_dict(), config.to_dict()):
            raise ValueError(
                f"{workdir} holds a run of another config; give another --workdir, or the same config:\n  "
                + "\n  ".join(differing)
            )
    elif new_allowed:
        if workdir.exists() and (not workdir.is_dir() or any(_holds_results(path) for path in workdir.iterdir())):
            raise ValueError(f"--workdir={workdir} is neither a run's folder nor empty; give another one")
    elif workdir.is_file():
        raise ValueError(f"--workdir={workdir} is a file; convert it first: python -m rgbd_jax convert {workdir} NAME")
    else:
        raise FileNotFoundError(f"{workdir} holds no run: {file} does not exist; train first, or check the path")


def has_run(workdir: Path) -> bool:
    """Returns whether a training has left more than its config: metrics, a checkpoint, scores or the like.

    A start that failed has not, and the next one may have another config.
    """
    return (workdir / CONFIG_FILE).is_file() and any(_holds_results(path) for path in workdir.iterdir())


def _holds_results(path: Path) -> bool:
    if path.name in (CONFIG_FILE, CLASSES_FILE, LOCK_FILE, *WRITERS) or path.suffix == ".tmp":
        return False
    return any(path.iterdir()) if path.is_dir() else size(path) > 0


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config of a run."""
    file = workdir / CONFIG_FILE
    try:
        return recorded_config(json.loads(file.read_text(), object_hook=with_tuples))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); every checkpoint of the run holds the config too, under 'config' in "
            f"{workdir}/checkpoints/STEP/metadata/metadata: put it back from there"
        ) from error


def read_class_names(workdir: Path) -> tuple[str, ...]:
    """Returns the class names of a run by label; empty for a folder that has none."""
    file = workdir / CLASSES_FILE
    if not file.is_file():
        return ()
    try:
        names = json.loads(file.read_text())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a list of names")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}): restore it, or delete it to number the classes") from error
    return tuple(names)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    old, new = flatten_dict(there, sep="."), flatten_dict(here, sep=".")
    return [
        f"config.{name}: {old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not MUTABLE_FIELDS.fullmatch(name)
    ]


def with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns fields of a config as JSON has them with tuples in place of lists; for `json.loads`."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
