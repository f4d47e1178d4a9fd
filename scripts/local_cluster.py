"""Trains with several processes on this machine: `python scripts/local_cluster.py N -- ARGUMENTS...`.

    python scripts/local_cluster.py 2 -- --config configs/folder.py --workdir runs/mine

starts N processes of `python -m rgbd_jax.main ARGUMENTS...` that train together. NVIDIA GPUs are divided evenly;
without them (or with JAX_PLATFORMS=cpu) `--devices K` simulates K CPU devices a process.

The output of process 0 is passed through; lines of the others go to stderr with the index of the process. SIGTERM or
Ctrl-C makes all save a checkpoint and end; a second one kills them. When a process fails, the launcher reports it and
ends the others. If it was killed by a signal, `--restarts K` starts all of them again, up to K times, and the training
resumes from the last checkpoint. The exit status is that of the first process that failed, or 75 if all have saved and
ended on request.
"""

import argparse
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75  # rgbd_jax.parallel.preemption.PREEMPTED, whose import takes seconds
SIGNALS = 128  # exit statuses above are those of processes that a signal killed
SIMULATED_DEVICES = "--xla_force_host_platform_device_count"


def main() -> int:
    """Starts the processes, waits for all, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = "%(prog)s N [--devices K] [--grace SECONDS] [--restarts K] [--module MODULE] -- ARGUMENTS..."
    parser.add_argument("processes", metavar="N", type=int, help="number of processes")
    parser.add_argument("--devices", metavar="K", type=int, help="per process (default: all GPUs // N, or one CPU)")
    parser.add_argument("--grace", metavar="SECONDS", type=int, default=30, help="to end in if one fails (%(default)s)")
    restarts = "starts of the group after a process was killed (%(default)s)"
    parser.add_argument("--restarts", metavar="K", type=int, default=0, help=restarts)
    parser.add_argument("--module", default="rgbd_jax.main", help="module to run (%(default)s)")
    if "--" not in sys.argv:
        parser.parse_args()  # --help
        parser.error("-- is missing; the arguments of the training follow it")
    separator = sys.argv.index("--")
    args, training_args = parser.parse_args(sys.argv[1:separator]), sys.argv[separator + 1 :]
    if min(args.processes, args.devices or 1) < 1:
        parser.error("N and K must be 1 or more")
    try:
        environments = divide_devices(args.processes, args.devices)
    except ValueError as error:
        parser.error(str(error))
    command = [sys.executable, "-u", "-m", args.module, *training_args]
    requests: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, frame: requests.append(number))
    status = wait(start(command, environments), args.grace, requests)
    for restart in range(1, args.restarts + 1):
        if status <= SIGNALS or requests:  # an error would be met again
            break
        _log(f"restart {restart} of {args.restarts}: a process was killed by signal {status - SIGNALS}")
        status = wait(start(command, environments), args.grace, requests)
    return status


def start(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> list["Process"]:
    """Starts a process for each environment, as one group."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    group = [f"--coordinator=localhost:{port}", f"--process_count={len(environments)}"]
    return [Process(index, [*command, *group], environment) for index, environment in enumerate(environments)]


def divide_devices(processes: int, devices: int | None) -> list[dict[str, str]]:
    """Returns the environment of each process, in which it sees its own devices; ValueError if GPUs are missing."""
    gpus = visible_gpus()
    if not gpus:
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(SIMULATED_DEVICES)]
        simulated = {"XLA_FLAGS": " ".join([*flags, f"{SIMULATED_DEVICES}={devices}"])} if devices else {}
        return [{**os.environ, **simulated}] * processes
    each = devices or max(1, len(gpus) // processes)
    if processes * each > len(gpus):
        raise ValueError(f"{processes} processes with {each} GPUs each, but {len(gpus)} GPUs are visible")
    shares = [gpus[index * each : (index + 1) * each] for index in range(processes)]
    return [{**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def visible_gpus() -> list[str]:
    """Returns the names, for CUDA_VISIBLE_DEVICES, of the NVIDIA GPUs that JAX would use."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return []
    gpus = re.findall(r"^GPU (\d+): ", listed, re.MULTILINE)
    if not gpus or "CUDA_VISIBLE_DEVICES" not in os.environ:
        return gpus
    chosen = (name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), chosen))  # as CUDA reads it


class Process(subprocess.Popen[bytes]):
    """A process of the group; its output is passed through, with its index unless that is 0."""

    def __init__(self, index: int, command: Sequence[str], environment: Mapping[str, str]):
        super().__init__(
            [*command, f"--process_index={index}"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if index else None,
            stderr=subprocess.STDOUT if index else None,
            start_new_session=True,  # Ctrl-C reaches the launcher alone
        )
        self._reader = threading.Thread(target=self._prefix_lines, args=(index,), daemon=True)
        self._reader.start()

    def failed(self) -> bool:
        """Returns whether it has ended, and neither well nor on request."""
        return self.poll() not in (None, 0, PREEMPTED)

    def status(self) -> int:
        """Returns the exit status as a shell does, after all output."""
        self._reader.join(timeout=5)  # longer only if something it started holds on to its output
        return self.returncode if self.returncode >= 0 else SIGNALS - self.returncode

    def _prefix_lines(self, index: int) -> None:
        for line in self.stdout or ():
            sys.stderr.buffer.write(b"[%d] %s\n" % (index, line.removesuffix(b"\n")))
            sys.stderr.flush()


def wait(processes: Sequence[Process], grace: float, requests: Sequence[int]) -> int:
    """Waits for all processes, `grace` seconds after a failure; `requests` are the signals received so far."""
    first_failed, kill_at, stopping, running = None, float("inf"), False, True
    while running:
        running = any(process.poll() is None for process in processes)
        if requests and not stopping:
            stopping = True
            _log("stopping: all processes save a checkpoint and end (once more: they are killed)")
            for process in processes:
                process.terminate()
        failed = [index for index, process in enumerate(processes) if process.failed()]
        if failed and first_failed is None:
            first_failed, kill_at = processes[failed[0]], time.monotonic() + grace
            others = f"; the others have {grace} s to end" if running else ""
            if len(requests) < 2:
                _log(f"error: process {failed[0]} ended with status {first_failed.status()}{others}")
        if len(requests) > 1 or time.monotonic() > kill_at:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    statuses = [process.status() for process in processes]
    return first_failed.status() if first_failed else max(statuses)


def _log(message: str) -> None:
    print(f"local_cluster: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
