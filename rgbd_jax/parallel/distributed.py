"""The processes that train together: how they join, agree, and end together when one of them fails.

A process that is alone is a group of one, for which all of this does nothing.
"""

import dataclasses
import importlib.util
import logging
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from rgbd_jax.parallel.preemption_sync import Agreement

FAILED = 1
_ALIVE, _ENDED, _FAILURE = "rgbd_jax/alive/", "rgbd_jax/ended/", "rgbd_jax/failed/"
# JAX ends a process with a stack trace when its group falls apart; the watch here speaks first.
_RUNTIME_PATIENCE = 60
_LONGEST_WAIT = 7 * 24 * 3600
# What this process is about to say of its own failure; the watch need not say it of another's.
_own_failure: list[str] = []
# The watch ends before Python does, which would end its thread amid C++ code of the runtime: that aborts the process.
_watches: list[threading.Thread] = []
_left = threading.Event()

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """What a process knows of its group from its command line; what is None is found out, or there is no group.

    Attributes:
        coordinator: host and port of process 0.
        process_count: number of processes.
        process_index: which of them this one is, from 0 on.
        join_timeout: seconds until a group that is not complete is given up.
        heartbeat_timeout: seconds after which a process that is not heard of counts as dead.
    """

    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None
    join_timeout: int = 300
    heartbeat_timeout: int = 60


def join(membership: DistributedConfig) -> None:
    """Joins the group that the command line names or that the process was started in (TPU pod, SLURM, Open MPI).

    Must be called before anything is computed. Without a group it does nothing.

    Raises:
        ValueError: the flags do not name a group.
        OSError: the group did not come together in time.
    """
    flags = (membership.coordinator, membership.process_count, membership.process_index)
    if flags == (None, None, None) and not _started_in_group():
        return
    _check(membership)
    where = membership.coordinator or "the coordinator, process 0"
    # The runtime would abort with a stack trace; so it is given more time than this watch.
    watch = threading.Timer(membership.join_timeout, _give_up_joining, (where, membership.join_timeout))
    watch.daemon = True
    watch.start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from ours
    try:
        jax.distributed.initialize(
            *flags,
            cluster_detection_method="deactivate" if membership.coordinator else None,  # flags go before all else
            initialization_timeout=membership.join_timeout + _RUNTIME_PATIENCE,
            heartbeat_timeout_seconds=membership.heartbeat_timeout + _RUNTIME_PATIENCE,
            shutdown_timeout_seconds=membership.heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise OSError(f"cannot join the group of {where}: {_first_line(error)}") from error
    finally:
        watch.cancel()
    if is_primary():
        log.debug("a group of %d processes", jax.process_count())
    else:
        log.setLevel(logging.WARNING)  # the first process speaks for all
    if jax.process_count() > 1:
        watch_others = (_client(), jax.process_index(), jax.process_count(), _interval(), membership.heartbeat_timeout)
        _watches.append(threading.Thread(target=_watch_others, args=watch_others, daemon=True))
        _watches[-1].start()


def is_primary() -> bool:
    """Returns whether this process is the one that writes and speaks for the group."""
    return jax.process_index() == 0


def wait_for_all(occasion: str) -> None:
    """Returns when every process of the group has come to the same occasion, which may be once only.

    However long that takes: the watch ends the process if another one is gone.
    """
    if client := _client():
        client.wait_at_barrier(f"rgbd_jax {occasion}", _LONGEST_WAIT * 1000)


def compiled(function: Any, occasion: str, *arguments: Any) -> Any:
    """Compiles a jitted function for its arguments, and returns it when every process of the group has done so.

    Otherwise the devices of a process that finds the program in its cache would wait for those of one that does not,
    and give up: on CPUs after half a minute.
    """
    program = function.lower(*arguments).compile()
    wait_for_all(f"compiled: {occasion}")
    return program


def all_agree(value: bool) -> bool:
    """Returns whether the value is true in every process of the group; all have to call it."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def agreement() -> Agreement | None:
    """Returns a new agreement with the others on when to stop, None without a group; all have to call it."""
    if client := _client():
        return Agreement(client, jax.process_index(), jax.process_count(), _interval())
    return None


def leave() -> None:
    """Tells the group that this process has come to its end as it should, and waits until all have.

    To be called last: the group is not to be asked again.
    """
    if client := _client():
        client.key_value_set(f"{_ENDED}{jax.process_index()}", "", allow_overwrite=True)
        try:
            jax.distributed.shutdown()
        except RuntimeError:  # this process has done its part; what became of another one, the watch tells
            log.debug("not all have come to their end", exc_info=True)
        _left.set()
        for watch in _watches:
            watch.join(5 * _interval())


def fail(error: BaseException) -> NoReturn:
    """Says why the process ends, tells the group, and ends it with status 1.

    An error that only follows from another process's, or that the first process has too, is not said again.
    """
    message, client = str(error), _client()
    if client is None:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(FAILED)
    index = jax.process_index()
    if lost := lost_contact(error):
        message = (
            f"contact with another process was lost ({message.splitlines()[0][:200]}), so this one ends; the last "
            "checkpoint is intact: run the same command again in all processes"
        )
    _own_failure.append(message)
    try:
        if index or lost:  # a failure that came before is told by the watch, which then ends the process
            time.sleep(2.5 * _interval())
            if any(text == message for _, text in client.key_value_dir_get(_FAILURE)):
                _end("")
        client.key_value_set(f"{_FAILURE}{index}", message, allow_overwrite=True)
    except Exception:  # the coordinator is gone: nobody is left to be told
        log.debug("the group cannot be told", exc_info=True)
    print(f"{_prefix()}error: {message}", file=sys.stderr, flush=True)
    if not index:
        time.sleep(2.5 * _interval())  # it is process 0 that the others ask: they have to hear of it before it ends
    _end("")


def fail_unexpectedly(error: Exception) -> NoReturn:
    """Ends the process for an error that nobody foresaw: with its traceback, but so that the group ends too."""
    if lost_contact(error):
        fail(error)
    if "RESOURCE_EXHAUSTED" in str(error):
        fail(
            MemoryError(
                "a device has not enough memory: lower config.train.batch_size or config.eval.batch_size, raise "
                "config.train.microbatches, or set config.remat; --mode=plan tells what fits\n  "
                + str(error).splitlines()[0][:300]
            )
        )
    if _client() is None:
        raise error
    traceback.print_exception(error)
    fail(error)


def lost_contact(error: BaseException) -> bool:
    """Returns whether an error says no more than that another process cannot be reached."""
    text = str(error)
    signs = ("Gloo", "Connection reset", "Connection closed", "NCCL", "UNAVAILABLE", "coordination service", "DEADLINE")
    return jax.process_count() > 1 and any(sign in text for sign in signs)


def _check(membership: DistributedConfig) -> None:
    given = {
        "--coordinator": membership.coordinator,
        "--process_count": membership.process_count,
        "--process_index": membership.process_index,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        present = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise ValueError(f"{present} without {' and '.join(missing)}: a group needs all three flags, or none")
    if missing:
        return
    count, index = membership.process_count, membership.process_index
    if not 0 <= (index or 0) < (count or 0):
        raise ValueError(f"--process_index={index} with --process_count={count}: expected 0 to {(count or 0) - 1}")
    host, _, port = str(membership.coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator={membership.coordinator}: expected HOST:PORT")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise ValueError(f"--coordinator={membership.coordinator}: there is no such host ({error})") from error


def _started_in_group() -> bool:
    """Returns whether the environment says that other processes were started along with this one."""
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if "OMPI_MCA_orte_hnp_uri" in os.environ:  # Open MPI up to version 4; JAX knows no later one
        return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    return "tpu" in wanted and importlib.util.find_spec("libtpu") is not None and _has_tpu()


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _client() -> Any:
    # The key-value store of the group has no public name in JAX yet.
    from jax._src import distributed

    return distributed.global_state.client if jax.process_count() > 1 else None


def _interval() -> float:
    """Returns the seconds between two looks at the others: more in large groups, which all ask one process."""
    return max(1.0, jax.process_count() / 32)


def _watch_others(client: Any, index: int, count: int, interval: float, timeout: float) -> None:
    """Ends this process when another one has failed, or has not been heard of for `timeout` seconds."""
    heard = dict.fromkeys(range(count), ("", time.monotonic()))  # process -> its last sign of life, and when that was
    beat = 0
    while not _left.wait(interval if beat else 0):
        beat += 1
        try:
            client.key_value_set(f"{_ALIVE}{index}", str(beat), allow_overwrite=True)
            for key, message in client.key_value_dir_get(_FAILURE):
                other = int(key.rpartition("/")[2])
                if other != index:
                    known = message in _own_failure
                    _end("" if known else f"process {other} failed, so this one ends too: {message}")
            signs = {int(key.rpartition("/")[2]): sign for key, sign in client.key_value_dir_get(_ALIVE)}
            ended = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(_ENDED)}
        except Exception:
            return  # process 0 is gone: the runtime ends this one, unless it is ending already
        now = time.monotonic()
        for other in range(count):
            if signs.get(other, "") != heard[other][0]:
                heard[other] = (signs[other], now)
            elif other != index and other not in ended and now - heard[other][1] > timeout:
                _end(
                    f"process {other} has not been heard of for {timeout:.0f} s, so this one ends; the last checkpoint "
                    "is intact: run the same command again in all processes"
                )


def _end(message: str) -> NoReturn:
    """Ends the process at once: others may be gone that a tidy end would wait for."""
    if message:
        print(f"{_prefix()}error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED)


def _prefix() -> str:
    return f"process {jax.process_index()}: " if jax.process_index() else ""


def _give_up_joining(where: str, timeout: float) -> None:
    print(
        f"error: the group did not come together within {timeout:.0f} s (--join_timeout): {where} does not answer, or "
        "another process has not been started; check the address, and that every process runs",
        file=sys.stderr,
        flush=True,
    )
    os._exit(FAILED)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
