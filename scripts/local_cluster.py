"""Runs a command as a group of processes on this machine: `python scripts/local_cluster.py N -- ARGUMENTS...`.

    python scripts/local_cluster.py 2 -- --config configs/folder.py --workdir runs/mine

starts N processes of `python -m rgbd_jax.main ARGUMENTS...` that train together. On a machine with NVIDIA GPUs, these
are shared out evenly; elsewhere (or with JAX_PLATFORMS=cpu) `--devices K` simulates K devices a process on the CPU, to
try out what a cluster would do.

Output of process 0 passes through as it is; that of the others goes to stderr, with the number of the process before
each line. SIGTERM or Ctrl-C is passed on, so that all save a checkpoint; a second one kills them. When a process fails,
the launcher says which one and how, and ends the others. The status is that of the first process that failed; 75 if the
processes were asked to stop and have saved: then the same command goes on from there.
"""

import argparse
import contextlib
import itertools
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75  # as in rgbd_jax.parallel.preemption, whose import takes seconds
SIMULATED_DEVICES = "--xla_force_host_platform_device_count"

# What gloo says when all goes well, and how lines of JAX's C++ runtime begin when the group falls apart around it. Its
# messages have lines of any form after the first: they end where a line begins like one of Python or of this package.
GLOO = re.compile(rb"\[Gloo\] Rank ")
RUNTIME = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d|\*\*\* |    @ +0x|PC: @|Fatal Python error: |terminate called")
OTHER = re.compile(rb"process \d+: |error: |Traceback |\d\d:\d\d:\d\d |usage: ")
# The runtime of one process may speak before the death of the other, which it speaks of, is seen here.
SECONDS_BEFORE_DEATH_IS_SEEN = 1.0


def main() -> int:
    """Runs what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = "%(prog)s N [--devices K] [--grace SECONDS] [--module MODULE] -- ARGUMENTS..."
    parser.add_argument("processes", metavar="N", type=_positive, help="number of processes")
    parser.add_argument("--devices", metavar="K", type=_positive, help="a process (default: all GPUs // N; one CPU)")
    parser.add_argument("--grace", metavar="SECONDS", type=int, default=10, help="to end in if one fails (%(default)s)")
    parser.add_argument("--module", default="rgbd_jax.main", help="what to run in place of %(default)s")
    ours = list(itertools.takewhile(lambda argument: argument != "--", sys.argv[1:]))
    theirs = sys.argv[len(ours) + 2 :]
    arguments = parser.parse_args(ours)
    if "--" not in sys.argv:
        parser.error(f"-- is missing; the arguments of {arguments.module} come after it")
    try:
        environments = share_out_devices(arguments.processes, arguments.devices)
    except ValueError as error:
        parser.error(str(error))
    coordinator = f"localhost:{_free_port()}"
    cluster = Cluster(arguments.grace)
    for index, environment in enumerate(environments):
        group = [f"--coordinator={coordinator}", f"--process_count={arguments.processes}", f"--process_index={index}"]
        # Unbuffered, so that nothing is lost of what a process said before it was killed.
        cluster.start([sys.executable, "-u", "-m", arguments.module, *theirs, *group], environment)
    return cluster.wait()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number


def _free_port() -> int:
    # Another program could take the port before process 0 listens on it, a few seconds later. The system hands out its
    # ports in no order, so that this is rare, and then process 0 says that it cannot start its server: start again.
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def share_out_devices(processes: int, devices: int | None) -> list[dict[str, str]]:
    """Returns the environment of each process, in which it sees its own devices.

    Args:
        processes: number of processes.
        devices: devices a process; None takes as many GPUs as there are for each, or one CPU.

    Raises:
        ValueError: there are not as many GPUs.
    """
    gpus = visible_gpus()
    if not gpus:
        return [_with_simulated_devices(devices)] * processes
    each = devices or max(1, len(gpus) // processes)
    if processes * each > len(gpus):
        raise ValueError(
            f"{processes} processes with GPUs of their own, {each} each, need {processes * each} GPUs, but "
            f"{len(gpus)} can be seen here (JAX_PLATFORMS=cpu runs without them)"
        )
    shares = [gpus[index * each : (index + 1) * each] for index in range(processes)]
    # In a shell that SLURM started JAX would take one GPU alone, of the number of the shell's task, if it was not told.
    own = {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(each)))}
    return [{**os.environ, **own, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def visible_gpus() -> list[str]:
    """Returns the names, for CUDA_VISIBLE_DEVICES, of the NVIDIA GPUs that JAX would use; none if it would use none."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return []
    numbers = [match[1] for match in re.finditer(r"^GPU (\d+): ", listed, re.MULTILINE)]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not numbers or chosen is None:
        return numbers
    names = (name.strip() for name in chosen.split(","))
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it


def _with_simulated_devices(devices: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if devices:
        flags = [flag for flag in environment.get("XLA_FLAGS", "").split() if not flag.startswith(SIMULATED_DEVICES)]
        environment["XLA_FLAGS"] = " ".join([*flags, f"{SIMULATED_DEVICES}={devices}"])
    return environment


class Cluster:
    """Processes that are watched together until the last one has ended.

    Args:
        grace: seconds that the others have to end by themselves when one has failed.
    """

    def __init__(self, grace: float):
        self._grace = grace
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # in the order in which they ended
        self._first_failed: int | None = None
        self._has_failed = threading.Event()
        self._killed = False
        self._kill_at = float("inf")
        self._output = threading.Lock()
        self._requests = 0  # to stop; heeded in wait(), where all processes are known
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._request)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the next process, in the checkout."""
        index = len(self._processes)
        # In a session of its own, Ctrl-C does not reach the process; what it leaves behind can be ended with it.
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout
        assert process.stderr
        self._processes.append(process)
        for source, sink in ((process.stdout, sys.stderr if index else sys.stdout), (process.stderr, sys.stderr)):
            reader = threading.Thread(target=self._pass_on, args=(index, source, sink.buffer), daemon=True)
            reader.start()
            self._readers.append(reader)
        threading.Thread(target=self._tell_end, args=(index,), daemon=True).start()

    def wait(self) -> int:
        """Returns the exit status of all, when all have ended."""
        statuses: dict[int, int] = {}
        heeded = 0
        while len(statuses) < len(self._processes):
            if self._requests > heeded:
                heeded = self._requests
                self._stop() if heeded == 1 else self._kill()
            if time.monotonic() > self._kill_at:
                self._kill()
            with contextlib.suppress(queue.Empty):
                index = self._ended.get(timeout=0.1)
                code = self._processes[index].returncode
                statuses[index] = code if code >= 0 else 128 - code
                self._end_session(index)
                if statuses[index] not in (0, PREEMPTED) and self._first_failed is None:
                    self._fail(index, code, others=len(self._processes) - len(statuses))
        for reader in self._readers:
            reader.join(timeout=5)  # at once, unless something that the process started has left its session
        if self._first_failed is not None:
            return statuses[self._first_failed]
        return PREEMPTED if PREEMPTED in statuses.values() else 0

    def _tell_end(self, index: int) -> None:
        self._processes[index].wait()
        self._ended.put(index)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requests += 1

    def _stop(self) -> None:
        self._say("stopping: all processes save a checkpoint and end (once more: they are killed)")
        for process in self._processes:
            process.terminate()  # not what it has started in turn: it still needs its loader

    def _fail(self, index: int, code: int, others: int) -> None:
        self._first_failed = index
        self._has_failed.set()
        self._kill_at = time.monotonic() + self._grace
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        then = f"; the others have {self._grace:g} s to end" if others else ""
        if not self._killed:
            self._say(f"error: process {index} {how}{then}")

    def _kill(self) -> None:
        self._killed, self._kill_at = True, float("inf")
        for index, process in enumerate(self._processes):
            if process.returncode is None:
                self._end_session(index)

    def _end_session(self, index: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the second: macOS, of one that is ending
            os.killpg(self._processes[index].pid, signal.SIGKILL)

    def _say(self, message: str) -> None:
        with self._output, contextlib.suppress(OSError):
            print(f"local_cluster: {message}", file=sys.stderr, flush=True)

    def _pass_on(self, index: int, source: BinaryIO, sink: BinaryIO) -> None:
        """Passes lines of a process on, but for those that say no more than that another one has failed."""
        of_runtime, until = False, 0.0
        for line in source:
            if GLOO.match(line):
                continue
            if not of_runtime:
                until = time.monotonic() + SECONDS_BEFORE_DEATH_IS_SEEN
            of_runtime = bool(RUNTIME.match(line)) or (of_runtime and not OTHER.match(line))
            if of_runtime and self._has_failed.wait(max(0, until - time.monotonic())) and self._first_failed != index:
                continue
            with self._output, contextlib.suppress(OSError):  # nobody reads it any more
                sink.write(b"[%d] %s\n" % (index, line.removesuffix(b"\n")) if index else line)
                sink.flush()


if __name__ == "__main__":
    sys.exit(main())
