"""Training by several processes: how they join, wait for each other, and end together."""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from rgbd_jax.parallel.preemption import PreemptedError

FAILED = 1
_WEEK_MS = 7 * 24 * 3600 * 1000
_SAME_ERROR_MS = 5000
_SHUTDOWN_SECONDS = 10  # from the first process that ends, which is the one that fails: others wait for each other

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that train together.

    JAX fills in the first three fields under SLURM, under Open MPI 4 and on TPU slices; elsewhere, without them, a
    process trains alone.

    Attributes:
        coordinator: HOST:PORT of process 0.
        process_count: number of processes.
        process_index: index of this process.
        join_timeout: timeout for all processes to join, in seconds.
        heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.
    """

    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None
    join_timeout: int = 300
    heartbeat_timeout: int = 60


ALONE = DistributedConfig()  # but under the launchers that JAX recognises


@contextlib.contextmanager
def group(config: DistributedConfig) -> Iterator[None]:
    """Joins the processes that train together, if there are several, and leaves them at the end.

    An error that all processes meet is raised in process 0 only; the others exit with status 1. When one process fails,
    JAX aborts the others within seconds; when it dies or hangs, after the heartbeat timeout, with its index.

    Raises:
        ValueError: the config does not describe a group.
        OSError: the group cannot be joined.
        MemoryError: a device is out of memory.
    """
    initialize(config)
    try:
        yield
    except PreemptedError:  # all processes have stopped together
        _leave()
        raise
    except Exception as error:
        met_by_all = _met_by_all(error)
        if not is_primary():
            if met_by_all:
                sys.exit(FAILED)
            log.error("process %d fails:", jax.process_index())
        if isinstance(error, jax.errors.JaxRuntimeError) and error.error_code_string == "RESOURCE_EXHAUSTED":
            raise MemoryError(
                "a device is out of memory: lower config.train.batch_size or config.eval.batch_size, raise "
                "config.train.microbatches, or set config.remat; --mode=plan shows what fits\n  "
                + str(error).splitlines()[0][:300]
            ) from error
        raise
    _leave()


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes, before anything is computed.

    JAX aborts a process whose group is not complete in time; the last line of its log names what it waited for.

    Raises:
        ValueError: the config does not describe a group.
        OSError: the group cannot be joined.
    """
    address = (config.coordinator, config.process_count, config.process_index)
    if any(value is not None for value in address):
        _check_address(config)
    elif not _launched_together():
        return
    coordinator = config.coordinator or "process 0"
    log.info("waiting up to %d s (--join_timeout) for %s and all other processes", config.join_timeout, coordinator)
    try:
        jax.distributed.initialize(
            *address,
            cluster_detection_method="deactivate" if config.coordinator else None,
            initialization_timeout=config.join_timeout,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise OSError(f"cannot join the group of {coordinator}: {error}") from error
    if not is_primary():
        log.setLevel(logging.WARNING)


def is_primary() -> bool:
    """Returns whether this is the process that logs and writes for all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits, without a timeout, until all processes have reached the barrier of this name, which is used once."""
    get_barrier_sync_fn()(key=f"rgbd_jax: {name}", timeout_ms=_WEEK_MS)


def gather(values: Sequence[float]) -> tuple[list[str], np.ndarray]:
    """Returns index and host name of every process, and their values, a row each; all processes call this together."""
    name = np.frombuffer(socket.gethostname().encode()[:64].ljust(64, b"\0"), np.uint8)
    names, rows = multihost_utils.process_allgather((name[None], np.array([values], np.float32)), tiled=True)
    hosts = [bytes(name).rstrip(b"\0").decode(errors="replace") for name in names]
    return [f"process {index} ({host})" for index, host in enumerate(hosts)], np.asarray(rows)


def compiled(function: Any, name: str) -> Callable[..., Any]:
    """Returns a jitted function that all processes compile at its first call, waiting for the slowest.

    Otherwise the collectives of a process with a warm compilation cache time out: on CPUs after 30 s.
    """
    program: Any = None

    def call(*arguments: Any) -> Any:
        nonlocal program
        if program is None:
            program = function.lower(*arguments).compile()
            barrier(f"compiled: {name}")
        return program(*arguments)

    return call


def _leave() -> None:
    barrier("all have finished")
    jax.distributed.shutdown()


def _met_by_all(error: Exception) -> bool:
    """Returns whether all processes come here with the same error within seconds."""
    checksum = zlib.crc32(str(error).encode())
    try:
        get_barrier_sync_fn()(key=f"rgbd_jax: error {checksum}", timeout_ms=_SAME_ERROR_MS)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _check_address(config: DistributedConfig) -> None:
    flags = ("coordinator", "process_count", "process_index")
    if missing := [f"--{name}" for name in flags if getattr(config, name) is None]:
        raise ValueError(f"{' and '.join(missing)} missing: a group needs --{', --'.join(flags)}, or none of them")
    count, index = config.process_count or 0, config.process_index or 0
    if not 0 <= index < count:
        raise ValueError(f"--process_index={index} with --process_count={count}: expected 0 to {count - 1}")
    host, _, port = str(config.coordinator).rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, ValueError) as error:
        raise ValueError(f"--coordinator={config.coordinator}: expected HOST:PORT of a known host ({error})") from error


def _launched_together() -> bool:
    """Returns whether this is one of several processes of a launcher that JAX recognises."""
    if "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if "OMPI_MCA_orte_hnp_uri" in os.environ:  # up to version 4
        return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    if "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu") or importlib.util.find_spec("libtpu") is None:
        return False
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
