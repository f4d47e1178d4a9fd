"""Kills a training run at random moments and checks that it ends exactly as an uninterrupted one.

    python scripts/kill_and_resume.py --kills 50 -- --config configs/demo.py --config.train.epochs=2

The run is killed by SIGKILL, by SIGKILL while a checkpoint is being written, by SIGTERM, and by SIGKILL in its first
seconds, in turn; each time the same command resumes it. Every twentieth time two processes start at once, of which one
must end because the other has the workdir. In the end all arrays of the last checkpoint must be bit-identical to those
of the other run, and `metrics.jsonl` the same but for timings. The result is one JSON line; the exit status is 1 if
anything differs.
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
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rgbd_jax.checkpoint.checkpoints import find, list_checkpoints
from rgbd_jax.checkpoint.metric_writers import TIMING_METRICS, read_metrics
from rgbd_jax.parallel.preemption import PREEMPTED

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Runs the training twice, kills one of them, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"), help="workdirs (%(default)s)")
    parser.add_argument("arguments", nargs="+", help="after --: arguments of rgbd_jax.main, without --workdir")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    whole, killed = args.folder / "whole", args.folder / "killed"
    started = time.monotonic()
    finish(args.arguments, whole)
    kinds = kill(args.arguments, killed, args.kills, random.Random(args.seed), time.monotonic() - started)
    finish(args.arguments, killed)
    one, other = outcome(whole), outcome(killed)
    differing = [name for name in one | other if one.get(name) != other.get(name)]
    counts = collections.Counter(kinds)
    print(json.dumps({"kills": len(kinds), **counts, "differing": differing[:10], "same": not differing}))
    sys.exit(bool(differing))


def kill(arguments: Sequence[str], workdir: Path, kills: int, rng: random.Random, seconds: float) -> list[str]:
    """Starts the training until it was killed often enough, anew if it ends before; returns how each time."""
    kinds: list[str] = []
    while len(kinds) < kills:
        kind = ("SIGKILL", "SIGKILL in a save", "SIGTERM", "SIGKILL at the start")[len(kinds) % 4]
        started, process = time.monotonic(), start(arguments, workdir)
        if len(kinds) % 20 == 1:
            process = survivor(process, start(arguments, workdir), workdir)
        moment = started + rng.uniform(0, min(seconds, 10) if kind == "SIGKILL at the start" else seconds)
        while process.poll() is None:
            if kind == "SIGKILL in a save" and any(workdir.glob("*/*.orbax-checkpoint-tmp*")):
                time.sleep(rng.uniform(0, 0.3))
                break
            if kind != "SIGKILL in a save" and time.monotonic() > moment:
                break
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
            kinds.append(kind)
        status = process.wait()
        if status not in (0, PREEMPTED, -signal.SIGTERM, -signal.SIGKILL):
            sys.exit(f"error: the training ended with status {status}: see {workdir.with_suffix('.log')}")
        saved = [path.name for path in list_checkpoints(workdir)][:1]
        print(f"{len(kinds)}/{kills} {kind}: status {status}, last checkpoint {saved}", file=sys.stderr)
        if status == 0:  # it was faster than the first run, which had to compile
            seconds = min(seconds, time.monotonic() - started)
            shutil.rmtree(workdir)
    return kinds


def survivor(one: subprocess.Popen, other: subprocess.Popen, workdir: Path) -> subprocess.Popen:
    """Returns which of two processes, started at once, runs on, after the other has ended."""
    while one.poll() is None and other.poll() is None:
        time.sleep(0.05)
    refused, running = (one, other) if one.poll() is not None else (other, one)
    if refused.returncode not in (0, 1):  # 0: it trained to the end before the other asked for the workdir
        sys.exit(
            f"error: of two processes one ended with status {refused.returncode}: see {workdir.with_suffix('.log')}"
        )
    print(f"of two processes one ended with status {refused.returncode}", file=sys.stderr)
    return running


def start(arguments: Sequence[str], workdir: Path) -> subprocess.Popen:
    """Starts the training, with its log in WORKDIR.log."""
    command = [sys.executable, "-m", "rgbd_jax.main", *arguments, "--workdir", str(workdir.absolute())]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(arguments: Sequence[str], workdir: Path) -> None:
    """Runs the training to its end."""
    if status := start(arguments, workdir).wait():
        sys.exit(f"error: the training ended with status {status}: see {workdir.with_suffix('.log')}")


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns the bytes of every array in the last checkpoint of a run, and its lines of metrics without timings."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore((find(workdir, "latest", evaluated=True) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for path, leaf in leaves}
    metrics = {f"line {i}": row | dict.fromkeys(TIMING_METRICS) for i, row in enumerate(read_metrics(workdir), 1)}
    return {**arrays, **metrics}


if __name__ == "__main__":
    main()
