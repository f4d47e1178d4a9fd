"""A cache of the compilers' estimates in files, since some compilations take minutes."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import rgbd_jax
from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.tools.plan.compilation import Job
from rgbd_jax.tools.plan.targets import Target, installed_version

# Environment variables that change what compilers do, and the devices of this machine.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_CLIENT_MEM_FRACTION")
_DEVICES = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
_SOURCES = ("*.py", "models/**/*.py", "parallel/*.py", "tools/plan/*.py")

log = logging.getLogger("rgbd_jax")


def key_of(job: Job) -> str:
    """Returns a hash of all that a job's estimates depend on: config, target, versions and this package's source."""
    config = job.config.copy_and_resolve_references().unlock()
    config.train.batch_size = config.eval.batch_size = job.batch_size
    for field in ("data", "checkpoint"):  # no part of a step
        del config[field]
    environment = [*map(os.environ.get, _VARIABLES)]
    if not job.target.kind:
        environment += [platform.node(), *map(os.environ.get, _DEVICES)]
    step = [config.to_dict(), job.num_classes, job.batch_size, job.step]
    parts = [step, str(job.target), environment, versions(job.target), source_hash()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(job: Job) -> dict[str, Any] | None:
    """Returns the estimates of a job that an earlier process wrote; None if there are none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(_file(job).read_text())
    return None


def write(job: Job, estimates: dict[str, Any]) -> None:
    """Writes a job's estimates; a folder that cannot be written is none."""
    try:
        with atomic_write(_file(job)) as unfinished:
            unfinished.write_text(json.dumps(estimates))
    except OSError as error:
        log.debug("estimates are not kept: %s", error)


def versions(target: Target) -> dict[str, str | None]:
    """Returns the versions of JAX and of a target's compilers."""
    return {name: installed_version(name) for name in ("jax", "jaxlib", *target.packages)}


@functools.cache
def source_hash() -> str:
    """Returns a hash of the source of the step and of what reads the estimates."""
    folder = Path(rgbd_jax.__file__).parent
    files = [file for pattern in _SOURCES for file in sorted(folder.glob(pattern))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _file(job: Job) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "rgbd_jax" / "plan" / f"{key_of(job)}.json"
