"""Real processes on this machine: they join, train as one, stop together, and end when one of them is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rgbd_jax.checkpoint.checkpoints import list_checkpoints
from rgbd_jax.checkpoint.metric_writers import MetricAccumulator
from rgbd_jax.checkpoint.preemption import PREEMPTED, PreemptedError
from rgbd_jax.parallel.distributed import DistributedConfig, join
from rgbd_jax.train import train
from tests.test_main import TINY
from tests.test_resume import after_calls
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
# How well the machine code is optimised does not matter here, and takes half of the time.
TWO_DEVICES = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
# Joins a group, agrees with the others, and then does what the process was told.
WORKER = """
import os, sys, time
from pathlib import Path
import jax
from rgbd_jax.parallel import distributed

told, folder, *address = sys.argv[1:]
flags = (address[0], int(address[1]), int(address[2])) if address else ()
distributed.join(distributed.DistributedConfig(*flags, join_timeout=60, heartbeat_timeout=6))
index = jax.process_index()
assert distributed.is_primary() == (index == 0) and jax.process_count() == 2
assert distributed.all_agree(True) and not distributed.all_agree(index == 0)
distributed.wait_for_all("everybody is here")
Path(folder, f"{index}.joined").touch()
if told == "fail" and index == 1:
    distributed.fail(ValueError("config.modality='audio' is wrong"))
if told == "fail together":
    distributed.fail(ValueError("all of us see this"))
time.sleep(2 if told == "end" else 60)
distributed.leave()
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment(**more):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    return {**plain, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), **more}


def workers(folder, told, environments=({}, {})):
    address = () if environments[0] else (f"localhost:{free_port()}", "2")
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, told, str(folder), *address, *([str(index)] if address else [])],
            env=environment(**more), stderr=subprocess.PIPE, text=True,
        )
        for index, more in enumerate(environments)
    ]  # fmt: skip


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def ended(processes, seconds=60):
    """Returns status and messages of each process; the runtime's own lines are left out."""
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    lines = [[line for line in text.splitlines() if "error: " in line and line[:1].islower()] for text in said]
    return [process.returncode for process in processes], lines


def test_processes_that_join_and_leave_say_nothing(tmp_path):
    assert ended(workers(tmp_path, "end")) == ([0, 0], [[], []])


def test_slurm_needs_no_flags(tmp_path):
    shared = {
        "SLURM_JOB_ID": str(free_port() % 2**12), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    tasks = [{**shared, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    assert ended(workers(tmp_path, "end", tasks)) == ([0, 0], [[], []])


def test_the_error_of_one_process_ends_all_and_is_told_by_all(tmp_path):
    status, (first, second) = ended(workers(tmp_path, "fail"))
    assert status == [1, 1]
    assert second == ["process 1: error: config.modality='audio' is wrong"]
    assert first == ["error: process 1 failed, so this one ends too: config.modality='audio' is wrong"]


def test_an_error_that_all_have_is_told_once(tmp_path):
    assert ended(workers(tmp_path, "fail together")) == ([1, 1], [["error: all of us see this"], []])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_ends_the_group(tmp_path, how):
    processes = workers(tmp_path, "wait")
    wait_until(lambda: (tmp_path / "0.joined").exists() and (tmp_path / "1.joined").exists(), 60)
    processes[1].send_signal(how)
    started = time.monotonic()
    processes[0].wait(timeout=30)
    assert time.monotonic() - started < 15  # the timeout of 6 s, and up to two looks at the others
    processes[1].kill()
    (status, _), (said, _) = ended(processes)
    assert status == 1
    (message,) = said
    assert "process 1 has not been heard of for 6 s" in message


def run(*arguments):
    command = [sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)


def test_a_coordinator_that_never_answers_is_given_up(tmp_path):
    started = time.monotonic()
    address = f"localhost:{free_port()}"
    finished = run(
        "--workdir", tmp_path / "run", f"--coordinator={address}", "--process_count=2", "--process_index=1",
        "--join_timeout=3",
    )  # fmt: skip
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.count("error: ") == 1
    assert f"error: the group did not come together within 3 s (--join_timeout): {address}" in finished.stderr
    assert time.monotonic() - started < 40
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("membership", "message"),
    [
        (DistributedConfig("localhost:1"), "--coordinator=localhost:1 without --process_count and --process_index"),
        (DistributedConfig("localhost:1", 2, 2), "--process_index=2 with --process_count=2: expected 0 to 1"),
        (DistributedConfig("localhost", 2, 0), "--coordinator=localhost: expected HOST:PORT"),
        (DistributedConfig("no-such-host.invalid:1", 2, 0), "there is no such host"),
    ],
)
def test_flags_that_name_no_group_are_errors(membership, message):
    with pytest.raises(ValueError, match=message):
        join(membership)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def train_steps(number, config, workdir, monkeypatch):
    """Trains some steps, then asks the run to stop."""
    with monkeypatch.context() as patched:
        after_calls(patched, MetricAccumulator, "add", number, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(PreemptedError):
            train(config, workdir)
    return int(list_checkpoints(workdir)[0].name)


@pytest.mark.slow
def test_two_processes_train_as_one_stop_together_and_one_process_goes_on(small_demo, tmp_path, monkeypatch):
    """SIGTERM to one of two processes with two devices each; their checkpoint fits one process with one device."""
    config, workdir = tiny_config(small_demo), tmp_path / "group"
    config.train.epochs = 500  # more than it will come to
    flags = [flag for flag in TINY if not flag.startswith("train.epochs")]
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", str(workdir),
                f"--config.data.data_dir={small_demo}", *(f"--config.{flag}" for flag in flags),
                "--config.train.epochs=500", f"--coordinator={address}", "--process_count=2",
                f"--process_index={index}",
            ],
            cwd=ROOT, env=environment(XLA_FLAGS=TWO_DEVICES), stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        wait_until(lambda: (workdir / "metrics.jsonl").exists() and len(lines(workdir)) > 4, 600)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [PREEMPTED, PREEMPTED], said
    stopped = int(list_checkpoints(workdir)[0].name)
    assert f"asked to stop, saved step {stopped} of 1500" in said[0]

    assert train_steps(1, config, workdir, monkeypatch) == stopped + 1
    logged = [line["step"] for line in lines(workdir) if line["kind"] == "train"]
    assert logged == list(range(1, stopped + 2))

    alone = tmp_path / "alone"
    assert train_steps(2, config, alone, monkeypatch) == 2
    # From step to step float32 rounds away from another number of devices (docs/performance.md); that a step is the
    # same is shown in float64 (test_devices). The second step sees what the first has made of the weights.
    for found, expected in zip(lines(workdir)[:2], lines(alone)[:2], strict=True):
        for name in ("loss", "cross_entropy", "distillation"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), (found["step"], name)
