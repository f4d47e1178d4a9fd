"""The folder of a run: its config and class names, and whether a command may resume it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rgbd_jax.atomic_write import atomic_write

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
# Fields that may differ when a run is resumed: they decide how long, how fast or from where, not what.
MUTABLE_FIELDS = re.compile(
    r"init_from|continue_from|fusion\.init_(rgb|depth)_from"
    r"|data\.(data_dir|raw_dir|skip_bad_clips|workers|eval_split)"
    r"|train\.(epochs|log_every_steps)|eval\.\w+|remat\.\w+|sharding\.\w+"
    r"|checkpoint\.(keep_best|keep_latest|keep_every_epochs|every_steps)"
)


def write_config(workdir: Path, config: ConfigDict, class_names: Sequence[str]) -> None:
    """Makes the workdir and writes the config, if there is none yet, and the class names into it.

    Raises:
        OSError: the workdir cannot be written to.
    """
    file = workdir / CONFIG_FILE
    # An existing file is written again: a run that cannot save must fail now, not after an epoch.
    text = file.read_text() if file.exists() else json.dumps(config.to_dict(), indent=1) + "\n"
    for path, contents in ((file, text), (workdir / CLASSES_FILE, json.dumps(list(class_names), indent=1) + "\n")):
        with atomic_write(path, "make room, lift the restriction, or give another --workdir") as unfinished:
            unfinished.write_text(contents)


def check_workdir(workdir: Path, config: ConfigDict, *, new_allowed: bool) -> None:
    """Checks that a workdir's run has this config, but for `MUTABLE_FIELDS`; a new one has to be empty or missing.

    Raises:
        ValueError: the workdir holds a run of another config (names every field), or something else.
        FileNotFoundError: there is no run, and there has to be one.
    """
    file = workdir / CONFIG_FILE
    if file.exists():
        if differing := _differences(read_config(workdir).to_dict(), config.to_dict()):
            raise ValueError(
                f"{workdir} holds a run of another config; give another --workdir, or the same config:\n  "
                + "\n  ".join(differing)
            )
    elif new_allowed:
        # A run that was killed at its very start leaves no more than an unfinished config.
        if workdir.exists() and (not workdir.is_dir() or any(path.suffix != ".tmp" for path in workdir.iterdir())):
            raise ValueError(f"--workdir={workdir} is neither a run's folder nor empty; give another one")
    elif workdir.is_file():
        raise ValueError(f"--workdir={workdir} is a file; convert it first: python -m rgbd_jax convert {workdir} NAME")
    else:
        raise FileNotFoundError(f"{workdir} holds no run: {file} does not exist; train first, or check the path")


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config of a run.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is damaged.
    """
    file = workdir / CONFIG_FILE
    try:
        fields = json.loads(file.read_text(), object_hook=_with_tuples)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); every checkpoint of the run holds the config too, under 'config' in "
            f"{workdir}/checkpoints/STEP/metadata/metadata: put it back from there"
        ) from error
    # `stream` is what `modality` was called first.
    return ConfigDict({"modality" if name == "stream" else name: value for name, value in fields.items()})


def read_class_names(workdir: Path) -> tuple[str, ...]:
    """Returns the class names of a run by label; empty for a folder that has none."""
    file = workdir / CLASSES_FILE
    return tuple(json.loads(file.read_text())) if file.is_file() else ()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    old, new = flatten_dict(there, sep="."), flatten_dict(here, sep=".")
    return [
        f"config.{name}: {old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not MUTABLE_FIELDS.fullmatch(name)
    ]


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
