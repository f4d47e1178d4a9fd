"""Kills a training again and again at random moments, and shows that it ends as one that never was killed.

    python scripts/kill_and_resume.py --kills 50 -- --config configs/demo.py --config.train.epochs=2

trains once without a break, then again, killed by SIGKILL or SIGTERM at random moments, many of them while a checkpoint
is being written, and each time started again by the same command. In the end parameters, statistics and optimizer state
must be the same to the last bit, and `metrics.jsonl` the same but for what depends on the clock. Both lie in --folder.
The result is one JSON line; the exit status is 1 if anything differs.
"""

import argparse
import collections
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rgbd_jax.checkpoint.metric_accumulator import OF_THE_CLOCK

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75
UNFINISHED = ("checkpoints/*.orbax-checkpoint-tmp*", "recovery/*.orbax-checkpoint-tmp*")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often it is killed (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"), help="where (%(default)s)")
    parser.add_argument("arguments", nargs="+", help="after --: those of rgbd_jax.main, without --workdir")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    whole, killed = options.folder / "whole", options.folder / "killed"

    started = time.monotonic()
    finish(options.arguments, whole)
    seconds = time.monotonic() - started
    told = collections.Counter(kill(options.arguments, killed, options.kills, random.Random(options.seed), seconds))
    finish(options.arguments, killed)

    differing = [*differing_arrays(whole, killed), *differing_lines(whole, killed)]
    print(json.dumps({"kills": sum(told.values()), **told, "differing": differing[:10], "same": not differing}))
    sys.exit(bool(differing))


def kill(arguments: Sequence[str], workdir: Path, kills: int, draws: random.Random, seconds: float) -> list[str]:
    """Starts the training until it was killed often enough; returns how each time.

    A third of the kills wait for a checkpoint that is being written, a third are SIGTERM, and a run that comes to its
    end before that is begun anew.

    Args:
        arguments: those of rgbd_jax.main.
        workdir: the run's folder.
        kills: how often.
        draws: where moments are drawn from.
        seconds: what a whole run takes.
    """
    how: list[str] = []
    while len(how) < kills:
        kind = ("SIGKILL", "SIGKILL in a save", "SIGTERM")[len(how) % 3]
        started, process = time.monotonic(), start(arguments, workdir)
        if _wait_for(kind, process, workdir, draws, seconds):
            process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
            how.append(kind)
        status = process.wait()
        if kind == "SIGTERM" and len(how) and how[-1] == kind and status not in (0, PREEMPTED, -signal.SIGTERM):
            sys.exit(f"error: SIGTERM ended with status {status}")
        print(f"{len(how)}/{kills} {kind}: status {status}, {_reached(workdir)}", file=sys.stderr)
        if status == 0:  # it was faster than the first one, which had to compile
            seconds = min(seconds, time.monotonic() - started)
            shutil.rmtree(workdir)
    return how


def _wait_for(kind: str, process: subprocess.Popen, workdir: Path, draws: random.Random, seconds: float) -> bool:
    """Returns at the moment of the kill; False if the run has ended before."""
    moment = time.monotonic() + draws.uniform(0, seconds)
    while process.poll() is None:
        if kind == "SIGKILL in a save":
            if any(any(workdir.glob(pattern)) for pattern in UNFINISHED):
                time.sleep(draws.uniform(0, 0.3))
                return process.poll() is None
        elif time.monotonic() > moment:
            return True
        time.sleep(0.005)
    return False


def start(arguments: Sequence[str], workdir: Path) -> subprocess.Popen:
    """Starts the training, its messages in WORKDIR.log."""
    command = [sys.executable, "-m", "rgbd_jax.main", *arguments, "--workdir", str(workdir.absolute())]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(arguments: Sequence[str], workdir: Path) -> None:
    """Runs the training to its end."""
    status = start(arguments, workdir).wait()
    if status:
        sys.exit(f"error: the training ended with status {status}: see {workdir.with_suffix('.log')}")


def differing_arrays(one: Path, other: Path) -> list[str]:
    """Returns the arrays of the last checkpoints of two runs that are not the same to the last bit."""
    import jax
    import orbax.checkpoint as ocp

    found = []
    for workdir in (one, other):
        latest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name))
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore((latest / "state").absolute())
        found.append({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)})
    if found[0].keys() != found[1].keys():
        return ["the checkpoints hold other arrays"]
    return [name for name, array in found[0].items() if not np.array_equal(array, found[1][name])]


def differing_lines(one: Path, other: Path) -> list[str]:
    """Returns the lines of the figures of two runs that differ in more than what depends on the clock."""
    lines = []
    for workdir in (one, other):
        written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        lines.append([{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in written])
    if len(lines[0]) != len(lines[1]):
        return [f"metrics.jsonl has {len(lines[0])} and {len(lines[1])} lines"]
    return [f"line {number + 1}: {a} and {b}" for number, (a, b) in enumerate(zip(*lines, strict=True)) if a != b]


def _reached(workdir: Path) -> str:
    folders = [*workdir.glob("checkpoints/[0-9]*"), *workdir.glob("recovery/[0-9]*")]
    steps = [int(folder.name) for folder in folders if folder.name.isdigit()]
    return f"saved up to step {max(steps)}" if steps else "nothing saved yet"


if __name__ == "__main__":
    main()
