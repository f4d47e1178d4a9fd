"""The whole command on the demo: how long until the first training step, and how fast the loop then goes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarking.worker import SCRIPTS


def start(repeats: int, data_dir: str) -> dict[str, dict[str, Any]]:
    """Returns the seconds from the command to the end of the first training step, without and with a warm cache."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm"
        _until_first_step(warm, Path(folder) / "run", data_dir)
        for name in ("cold", "warm"):
            seconds = []
            for number in range(repeats):
                cache = warm if name == "warm" else Path(folder) / f"cache{number}"
                seconds.append(_until_first_step(cache, Path(folder) / f"{name}{number}", data_dir))
            rows[f"command to first step, {name} compilation cache"] = {"seconds": {"ours": seconds}}
    return rows


def loop(data_dir: str) -> dict[str, dict[str, Any]]:
    """Returns the seconds a clip of the demo's second and third epoch, loader and log included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_command(Path(folder) / "run", data_dir), "--config.train.epochs=3"]
        finished = subprocess.run(command, cwd=SCRIPTS.parent, check=True, capture_output=True, text=True)
        log = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        clips = [line["clips_per_second"] for line in map(json.loads, log) if line["kind"] == "train"]
        waiting = [line["input_wait_fraction"] for line in map(json.loads, log) if line["kind"] == "train"]
        whole = json.loads(finished.stdout.splitlines()[-1])["seconds"]
    return {
        "training loop, a clip": {
            "seconds": {"ours": [1 / value for value in clips[len(clips) // 3 :]]},
            "input_wait_fraction": sum(waiting) / len(waiting),
            "whole_run_seconds": whole,
        }
    }


def _command(workdir: Path, data_dir: str) -> list[str]:
    return [
        sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", str(workdir),
        f"--config.data.data_dir={data_dir}", "--config.train.log_every_steps=1",
    ]  # fmt: skip


def _until_first_step(cache: Path, workdir: Path, data_dir: str) -> float:
    """Starts a training of the demo and stops it when it has told of its first step."""
    started = time.perf_counter()
    process = subprocess.Popen(
        _command(workdir, data_dir), cwd=SCRIPTS.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
    )  # fmt: skip
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if " step 1/" in line:
            seconds = time.perf_counter() - started
            process.send_signal(signal.SIGTERM)  # it saves and ends; what it has compiled is in the cache
            process.communicate()
            return seconds
    raise RuntimeError("the training ended before its first step:\n" + "".join(said))
