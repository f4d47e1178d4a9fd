"""What produced a checkpoint: versions, source revision, machine and data, and what differs when it is loaded again."""

import datetime
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rgbd_jax.checkpoint.card_facts import started_from
from rgbd_jax.checkpoint.checkpoints import CheckpointMetadata
from rgbd_jax.data.source import PreparedSplit

log = logging.getLogger("rgbd_jax")

PACKAGES = (
    "rgbd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets",
    "opencv-python-headless", "simplejpeg",
)  # fmt: skip
SAMPLED_CLIPS = 16


def provenance(training: PreparedSplit, evaluation: PreparedSplit) -> dict[str, Any]:
    """Returns what a run is produced by, JSON-able.

    Args:
        training: the clips that it trains on.
        evaluation: the clips that it is evaluated on.
    """
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git_revision(Path(__file__).resolve().parents[1]),
        "machine": {
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        },
        "data": {"training": fingerprint(training), "evaluation": fingerprint(evaluation)},
    }


def fingerprint(split: PreparedSplit) -> dict[str, Any]:
    """Returns what tells the clips of a split from others: numbers, classes, and a digest of a sample of the clips."""
    digest = hashlib.sha256()
    for place in np.unique(np.linspace(0, len(split) - 1, SAMPLED_CLIPS).astype(int)):
        clip = split[int(place)]
        digest.update(f"{clip.name} {clip.label}\n".encode())
        for modality, frames in clip.frames.items():
            for number in np.unique(np.linspace(0, len(frames) - 1, 4).astype(int)) if frames else ():
                digest.update(f"{modality} {len(frames)} {number}\n".encode())
                digest.update(frames[number])
    return {
        "dataset": split.directory.parent.name,
        "version": split.directory.name,
        "split": split.split,
        "clips": len(split),
        "classes": hashlib.sha256(json.dumps(split.class_names).encode()).hexdigest()[:16],
        "sample": digest.hexdigest()[:16],
    }


def first_provenance(here: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the provenance of a run that begins: with its beginning, and what it starts from."""
    return {**here, "begun": here["started"], "started_from": started_from(config), "changes": []}


def continued_provenance(run: CheckpointMetadata, here: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Returns the provenance of a run that goes on: how it began, and what is no longer as it was.

    Args:
        run: what its checkpoint holds; less, if it is of an older version.
        here: provenance of this process.
        step: step of the checkpoint.
    """
    there = run.provenance
    differing = version_differences(there, here) + data_differences(there, here, "evaluation")
    changes = [*there.get("changes", ()), *(f"step {step}: {line}" for line in differing)]
    result = {**here, "changes": changes}
    if (begun := there.get("begun", there.get("started"))) is not None:
        result["begun"] = begun
    if "started_from" in there or run.config:
        result["started_from"] = there.get("started_from", started_from(run.config))
    return result


def check_provenance(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Explains what differs from what produced a checkpoint that a run goes on from.

    Other versions and machines are told in the log; so are other clips to evaluate on.

    Args:
        workdir: the run's folder.
        there: provenance of the checkpoint; empty if it is of an older version.
        here: provenance of this run.

    Raises:
        ValueError: the training clips are others.
    """
    if differing := data_differences(there, here, "training"):
        raise ValueError(
            f"{workdir} was trained on other clips; restore the data set, or give another --workdir (and "
            "--config.init_from to start from its weights):\n  " + "\n  ".join(differing)
        )
    explain_differences(workdir, there, here)


def explain_differences(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Tells in the log which versions, machine and evaluation clips differ from those of a checkpoint."""
    if differing := version_differences(there, here) + data_differences(there, here, "evaluation"):
        log.warning(
            "not all is as it was when the checkpoint in %s was written; figures may differ:\n  %s",
            workdir,
            "\n  ".join(differing),
        )


def data_differences(there: Mapping[str, Any], here: Mapping[str, Any], kind: str) -> list[str]:
    """Returns a line for each part of a fingerprint that differs.

    Args:
        there: provenance of a checkpoint; empty if it is of an older version.
        here: provenance of this run.
        kind: "training" or "evaluation".
    """
    old, new = there.get("data", {}).get(kind, {}), here["data"][kind]
    return [
        f"{kind} clips, {name}: {old[name]!r} there, {new[name]!r} here"
        for name in new
        if name in old and old[name] != new[name]
    ]


def version_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns a line for each version, revision and machine that differs: results may then differ in rounding."""
    lines = [
        f"{name}: {old} there, {here['versions'].get(name)} here"
        for name, old in there.get("versions", {}).items()
        if old != here["versions"].get(name)
    ]
    if there.get("git") and here["git"] and there["git"] != here["git"]:
        lines.append(f"git revision: {there['git']} there, {here['git']} here")
    old = there.get("machine", {})
    return lines + [
        f"{name}: {old[name]} there, {new} here" for name, new in here["machine"].items() if old.get(name, new) != new
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision(root: Path) -> str | None:
    """Returns the revision of the checkout, with "+changes" if files were changed since; None without git."""
    try:
        revision = _git(root, "rev-parse", "HEAD").strip()
        return revision + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
