"""Real processes on this machine: they join, train as one, stop together, and end when one of them is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from rgbd_jax.checkpoint.checkpoints import list_checkpoints
from rgbd_jax.parallel.distributed import DistributedConfig, group, initialize
from rgbd_jax.parallel.preemption import PREEMPTED
from tests.test_main import TINY

ROOT = Path(__file__).parents[1]
TWO_DEVICES = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
ABORTED = -signal.SIGABRT
WORKER = """
import os, signal, sys, time
from pathlib import Path
import jax
from rgbd_jax.checkpoint.metric_writers import MetricAccumulator
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.preemption import PreemptionSync

action, folder, *address = sys.argv[1:]
flags = (address[0], int(address[1]), int(address[2])) if address else ()
with distributed.group(distributed.DistributedConfig(*flags, join_timeout=60, heartbeat_timeout=6)):
    index = jax.process_index()
    assert distributed.is_primary() == (index == 0) and jax.process_count() == 2
    distributed.barrier("everybody is here")
    Path(folder, f"{index}.joined").touch()
    if action == "fail" and index == 1:
        raise ValueError("config.modality='audio' is wrong")
    if action == "count":
        with PreemptionSync() as preemption:
            points = 0
            while not preemption.reached() and points < 1000:
                points += 1
                time.sleep(0.01 * (1 + index))
        Path(folder, f"{index}.points").write_text(str(points))
        sys.exit(75)
    if action == "train slowly":
        def batches():
            while True:
                time.sleep(0.1 * index)
                yield {}
        accumulator, slow = MetricAccumulator(), batches()
        for _ in range(3):
            accumulator.next_batch(slow)
            accumulator.add({"loss": jax.numpy.ones(())})
        waited = accumulator.means(3, 8)["input_wait_fraction"]
        Path(folder, f"{index}.waited").write_text(str(waited))
    time.sleep(60 if action in ("fail", "wait") else 0)
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment(**more):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    return {**plain, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}


def start(command, **more):
    return subprocess.Popen(command, cwd=ROOT, env=environment(**more), stderr=subprocess.PIPE, text=True)


def workers(folder, action, environments=({}, {})):
    address = () if environments[0] else (f"localhost:{free_port()}", "2")
    command = [sys.executable, "-c", WORKER, action, str(folder), *address]
    return [start([*command, *([str(index)] if address else [])], **more) for index, more in enumerate(environments)]


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def ended(processes, seconds=300):
    """Returns status and stderr of each process."""
    try:
        stderr = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], stderr


def test_a_process_that_waits_longer_for_its_input_is_named(tmp_path):
    status, stderr = ended(workers(tmp_path, "train slowly"))
    assert status == [0, 0], stderr
    assert f"process 1 ({socket.gethostname()}) slows down the training" in stderr[0]
    first, second = (float((tmp_path / f"{index}.waited").read_text()) for index in range(2))
    assert first == second > 0.5


def test_slurm_needs_no_flags(tmp_path):
    shared = {
        "SLURM_JOB_ID": str(free_port() % 2**12),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    tasks = [{**shared, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    status, stderr = ended(workers(tmp_path, "end", tasks))
    assert status == [0, 0], stderr


def test_the_error_of_one_process_ends_all(tmp_path):
    status, (first, second) = ended(workers(tmp_path, "fail"))
    assert status[0] == ABORTED
    assert status[1] != 0
    assert "process 1 fails:" in second
    assert "ValueError: config.modality='audio' is wrong" in second
    assert "Shutdown barrier has failed" in first


def test_a_process_that_hangs_ends_the_group(tmp_path):
    processes = workers(tmp_path, "wait")
    wait_until(lambda: (tmp_path / "0.joined").exists() and (tmp_path / "1.joined").exists())
    processes[1].send_signal(signal.SIGSTOP)
    processes[0].wait(timeout=60)  # the heartbeat timeout is 6 s
    processes[1].kill()
    (status, _), (stderr, _) = ended(processes)
    assert status == ABORTED
    assert "The following tasks are unhealthy (stopped sending heartbeats):\n1\n" in stderr


def test_all_processes_stop_at_one_synchronisation_point(tmp_path):
    processes = workers(tmp_path, "count")
    wait_until(lambda: (tmp_path / "0.joined").exists() and (tmp_path / "1.joined").exists())
    time.sleep(1)
    processes[0].send_signal(signal.SIGINT)
    status, stderr = ended(processes)
    assert status == [PREEMPTED, PREEMPTED], stderr
    first, second = (int((tmp_path / f"{index}.points").read_text()) for index in range(2))
    assert 0 < first == second < 1000


def test_a_coordinator_that_does_not_answer(tmp_path):
    address = f"localhost:{free_port()}"
    flags = [f"--coordinator={address}", "--process_count=2", "--process_index=1", "--join_timeout=3"]
    command = [sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", str(tmp_path / "run")]
    (status,), (stderr,) = ended([start([*command, *flags])])
    assert status == ABORTED
    assert f"waiting up to 3 s (--join_timeout) for {address} and all other processes" in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistributedConfig("localhost:1"), "--process_count and --process_index missing"),
        (DistributedConfig("localhost", 2, 0), "--coordinator=localhost: expected HOST:PORT"),
        (DistributedConfig("no-such-host.invalid:1", 2, 0), "expected HOST:PORT of a known host"),
        (DistributedConfig("localhost:1", 2, 2), "--process_index=2 with --process_count=2: expected 0 to 1"),
    ],
)
def test_flags_that_name_no_group_are_errors(config, message):
    with pytest.raises((ValueError, OSError), match=message):
        initialize(config)


def test_lack_of_device_memory_is_explained():
    with (
        pytest.raises(MemoryError, match=r"lower config.train.batch_size .*\n  RESOURCE_EXHAUSTED"),
        group(DistributedConfig()),
    ):
        jnp.zeros(1 << 50, jnp.int8)


def lines(workdir, kind="train"):
    file = workdir / "metrics.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in found if line["kind"] == kind]


def train_until(number, workdir, small_demo, processes=1):
    """Trains until so many steps are logged, sends SIGTERM to the last process, and returns the step that was saved."""
    fields = [f"data.data_dir={small_demo}", *(flag for flag in TINY if "train.epochs" not in flag), "train.epochs=500"]
    command = [sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", str(workdir)]
    command += [f"--config.{field}" for field in fields]
    if processes > 1:
        command += [f"--coordinator=localhost:{free_port()}", f"--process_count={processes}"]
    indices = [[f"--process_index={index}"] for index in range(processes)] if processes > 1 else [[]]
    devices = {"XLA_FLAGS": TWO_DEVICES} if processes > 1 else {}
    started = [start([*command, *index], **devices) for index in indices]
    try:
        wait_until(lambda: len(lines(workdir)) >= number, 600)
        started[-1].send_signal(signal.SIGTERM)
    finally:
        status, stderr = ended(started)
    assert status == [PREEMPTED] * processes, stderr
    step = int(list_checkpoints(workdir)[0].name)
    assert f"saved step {step} of 1500" in stderr[0]
    return step


@pytest.mark.slow
def test_two_processes_train_as_one_stop_together_and_one_process_resumes(small_demo, tmp_path):
    """Two processes with two devices each; their checkpoint fits one process with one device."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    stopped = train_until(5, together, small_demo, processes=2)
    resumed = train_until(stopped + 1, together, small_demo)
    assert resumed > stopped
    assert [line["step"] for line in lines(together)] == list(range(1, resumed + 1))

    train_until(2, alone, small_demo)
    # Rounding in float32 depends on the number of devices (docs/performance.md); test_devices compares in float64.
    for both, single in zip(lines(together)[:2], lines(alone)[:2], strict=True):
        for name in ("loss", "cross_entropy", "distillation"):
            assert both[name] == pytest.approx(single[name], rel=1e-4), (both["step"], name)
