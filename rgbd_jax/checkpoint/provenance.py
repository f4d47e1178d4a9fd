"""Provenance of a run: versions, git revision, machine and data that produced it, and what differs on resuming."""

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
from ml_collections import ConfigDict

from rgbd_jax.data.source import PreparedSplit

log = logging.getLogger("rgbd_jax")

PACKAGES = (
    "rgbd_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tensorflow-datasets",
    "opencv-python-headless",
    "simplejpeg",
)


def provenance(config: ConfigDict, training: PreparedSplit, evaluation: PreparedSplit) -> dict[str, Any]:
    """Returns the provenance of a run that starts in this process, JSON-able."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    initial = {"continue_from": config.continue_from, "init_from": config.init_from}
    if config.modality == "fusion":
        initial |= {f"fusion.{field}": config.fusion[field] for field in ("init_rgb_from", "init_depth_from")}
    return {
        "begun": now,
        "started": now,
        "started_from": {field: path for field, path in initial.items() if path},
        "changes": [],
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
    """Returns what identifies the clips of a split: numbers, classes, and a digest of a sample of the clips."""
    digest = hashlib.sha256()
    for index in np.unique(np.linspace(0, len(split) - 1, 16).astype(int)):
        clip = split[int(index)]
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


def resumed_provenance(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Returns the provenance of a run that resumes from a checkpoint of `step`; logs what has changed since.

    Raises ValueError if the training clips have changed.
    """
    old, new = _compared(there), _compared(here)
    changes = [f"{name}: {old[name]} there, {new[name]} here" for name in old if old[name] != new.get(name, old[name])]
    if other_clips := [change for change in changes if change.startswith("training clips")]:
        raise ValueError(
            f"{workdir} was trained on other clips; restore the data set, or give another --workdir (and "
            "--config.init_from to start from its weights):\n  " + "\n  ".join(other_clips)
        )
    if changes:
        changed = "\n  ".join(changes)
        log.warning("changed since the checkpoint in %s was written; metrics may differ:\n  %s", workdir, changed)
    changes = [*there["changes"], *(f"step {step}: {change}" for change in changes)]
    return {**here, "begun": there["begun"], "started_from": there["started_from"], "changes": changes}


def _compared(provenance: Mapping[str, Any]) -> dict[str, Any]:
    clips = provenance["data"].items()
    by_kind = {f"{kind} clips, {name}": value for kind, facts in clips for name, value in facts.items()}
    return {**provenance["versions"], "git revision": provenance["git"], **provenance["machine"], **by_kind}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision(root: Path) -> str | None:
    """Returns the revision of the checkout, with "+changes" if files were changed since; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
