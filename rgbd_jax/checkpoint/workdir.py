"""The folder of a run: config and names of the classes that it holds, and whether another command may go on in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.config import default_config

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
# Fields that may change between two runs in one workdir: they decide how long, how fast or from where, not what.
MUTABLE_FIELDS = (
    "data.data_dir", "data.raw_dir", "data.skip_bad_clips", "data.workers", "data.eval_split", "train.epochs",
    "train.log_every_steps", "eval.batch_size", "eval.clips", "eval.crops", "init_from", "continue_from",
    "fusion.init_rgb_from", "fusion.init_depth_from", "remat.stem", "remat.inception", "remat.transformer",
    "sharding.parameter_shards", "checkpoint.keep_best", "checkpoint.keep_latest", "checkpoint.keep_every_epochs",
    "checkpoint.every_steps",
)  # fmt: skip
# Fields that configs of earlier versions lack, and what runs of those versions did.
ADDED_FIELDS = {
    "model.sync_batch_norm": True,
    "train.microbatches": 1,
    "checkpoint.best_is": "highest",
}


def write_config(workdir: Path, config: ConfigDict, class_names: Sequence[str]) -> None:
    """Makes the workdir and writes config and names of the classes into it, if they are not there yet.

    Raises:
        OSError: the workdir cannot be written to.
    """
    file = workdir / CONFIG_FILE
    advice = "make room, lift the restriction, or give another --workdir"
    # Written again where it is there: a run that cannot save is told so now, not after an epoch.
    text = file.read_text() if file.exists() else json.dumps(config.to_dict(), indent=1) + "\n"
    with atomic_write(file, advice) as unfinished:
        unfinished.write_text(text)
    with atomic_write(workdir / CLASSES_FILE, advice) as unfinished:
        unfinished.write_text(json.dumps(list(class_names), indent=1) + "\n")


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
                f"--workdir={workdir} is a file; convert it first: python -m rgbd_jax.pytorch {workdir} NAME"
            )
        if not new_allowed:
            raise FileNotFoundError(f"{workdir} holds no run: {file} does not exist; train first, or check the path")
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise ValueError(f"--workdir={workdir} is neither a run's folder nor empty; give another one")
        return
    if differing := differences(read_config(workdir), config.to_dict()):
        raise ValueError(
            f"{workdir} holds a run of another config; give another --workdir, or the same config:\n  "
            + "\n  ".join(differing)
        )


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the config of a run.

    Raises:
        ValueError: the file is damaged.
    """
    file = workdir / CONFIG_FILE
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); every checkpoint of the run holds the config too, under 'config' in "
            f"{workdir}/checkpoints/STEP/run/metadata: put it back from there"
        ) from error


def run_config(workdir: Path) -> ConfigDict:
    """Returns the config of a run, to work with; fields that it lacks have the values that older runs worked with.

    Raises:
        ValueError: the file is damaged.
    """
    there = _flatten(read_config(workdir))
    fields = {**_flatten(default_config(there["modality"]).to_dict()), **ADDED_FIELDS, **there}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return ConfigDict(traverse_util.unflatten_dict(values, sep="."))


def read_class_names(workdir: Path) -> tuple[str, ...]:
    """Returns the names of the classes that a run was trained on, by label; none where it does not tell."""
    file = workdir / CLASSES_FILE
    return tuple(json.loads(file.read_text())) if file.is_file() else ()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns a line for every field of two configs that differs, but for those that may."""
    old, new = {**ADDED_FIELDS, **_flatten(there)}, {**ADDED_FIELDS, **_flatten(json.loads(json.dumps(here)))}
    return [
        f"config.{name}: {old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} here"
        for name in sorted(old.keys() | new.keys())
        if name not in MUTABLE_FIELDS and old.get(name) != new.get(name)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
