"""The launcher of a group of processes on one machine, with a stand-in for the training."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCHER = ROOT / "scripts" / "local_cluster.py"

# A process of a group: runs the code that its arguments hold for it; the last one is for all further processes too.
MEMBER = """
import json, os, pathlib, signal, subprocess, sys, time
*codes, coordinator, count, index = sys.argv[1:]
number = int(index.removeprefix("--process_index="))
exec(codes[min(number, len(codes) - 1)])
"""
TELL = "print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in %s}]))"
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', file=sys.stderr); time.sleep(60)"
SAVE = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', file=sys.stderr); time.sleep(60)"

# What JAX 0.10 says on stdout, and on stderr when process 0 is killed (shortened).
GLOO = "[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"
NOISE = """\
E1127 11:19:33.975998   16246 coordination_service_agent.cc:289] Polled an error from coordination service.
F1127 11:19:33.976051   16246 client.h:80] Terminating process because the JAX distributed service detected errors.

Additional GRPC error information from remote target coordination_service while calling PollForError:
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
*** Check failure stack trace: ***
    @     0x7f662c640634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
    @     0x7f6633aa71f5  (unknown)
Fatal Python error: Aborted

Thread 0x00007f662c640634 (most recent call first):
  File "train.py", line 8 in train
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the launcher with code for its processes in place of the training."""
    (tmp_path / "member.py").write_text(MEMBER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    started = []

    def start(processes, *codes, options=()):
        command = [sys.executable, LAUNCHER, str(processes), "--module=member", *options, "--", *codes]
        launcher = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="surrogateescape",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        launcher.terminate()
        launcher.send_signal(signal.SIGINT)  # the second request: its processes are killed
        launcher.communicate(timeout=30)


@pytest.fixture
def run(start):
    """Runs the launcher to its end; returns its status, stdout and stderr."""

    def run(*arguments, **options):
        launcher = start(*arguments, **options)
        stdout, stderr = launcher.communicate(timeout=30)
        return launcher.returncode, stdout, stderr

    return run


def refused(*arguments):
    finished = subprocess.run([sys.executable, LAUNCHER, *arguments], capture_output=True, text=True, timeout=30)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    return finished.stderr


def told(stdout, stderr):
    """What processes that run `TELL` said: their arguments and environments, in order."""
    others = dict(line.split(" ", 1) for line in stderr.splitlines())
    return [json.loads(text) for text in (stdout, *(others[f"[{index + 1}]"] for index in range(len(others))))]


def wait_until_ready(launcher, processes):
    for _ in range(processes):
        assert "ready" in launcher.stderr.readline()


def test_every_process_gets_the_arguments_and_its_number(run):
    theirs = (*[TELL % "[]"] * 3, "--name=two words", "$HOME 'x'", "--")
    status, stdout, stderr = run(3, *theirs)
    assert status == 0
    found = [arguments for arguments, _ in told(stdout, stderr)]
    address = found[0][-3]
    assert re.fullmatch(r"--coordinator=localhost:\d{4,5}", address)
    assert found == [[*theirs, address, "--process_count=3", f"--process_index={index}"] for index in range(3)]


def test_output_of_the_first_passes_as_it_is_that_of_others_with_their_number(run):
    write = r"sys.stdout.buffer.write(b'one\n\xfftwo'); sys.stderr.write('three\n\nfour\n')"
    status, stdout, stderr = run(2, write, f"time.sleep(0.5); {write}")
    assert status == 0
    assert stdout.encode(errors="surrogateescape") == b"one\n\xfftwo"
    others = [line.encode(errors="surrogateescape") for line in stderr.removeprefix("three\n\nfour\n").splitlines()]
    assert sorted(others) == [b"[1] ", b"[1] four", b"[1] one", b"[1] three", b"[1] \xfftwo"]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ([], "--xla_one=1 --xla_force_host_platform_device_count=9 --xla_two=2"),
        (["--devices=4"], "--xla_one=1 --xla_two=2 --xla_force_host_platform_device_count=4"),
    ],
)
def test_simulated_devices_leave_other_flags_alone(run, monkeypatch, options, flags):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1 --xla_force_host_platform_device_count=9 --xla_two=2")
    status, stdout, stderr = run(2, TELL % "['XLA_FLAGS']", options=options)
    assert status == 0
    assert [environment for _, environment in told(stdout, stderr)] == [{"XLA_FLAGS": flags}] * 2


@pytest.fixture
def four_gpus(tmp_path, monkeypatch):
    """Makes this a machine with four NVIDIA GPUs."""
    command = tmp_path / "nvidia-smi"
    lines = "".join(f"GPU {number}: NVIDIA H100 80GB HBM3 (UUID: GPU-{number})\n" for number in range(4))
    command.write_text(f"#!/bin/sh\ncat <<END\n{lines}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "platforms", "options", "shares", "own"),
    [
        (None, "", [], ["0,1", "2,3"], "0,1"),
        (None, "", ["--devices=1"], ["0", "1"], "0"),
        (None, "cuda,cpu", [], ["0,1", "2,3"], "0,1"),
        ("3,GPU-1, 0", "", [], ["3", "GPU-1"], "0"),
        ("2,1,-1,0", "", [], ["2", "1"], "0"),
        ("", "", [], ["", ""], None),
        (None, "cpu", [], [None, None], None),
    ],
)
def test_gpus_are_shared_out(run, four_gpus, monkeypatch, visible, platforms, options, shares, own):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    status, stdout, stderr = run(2, TELL % "['CUDA_VISIBLE_DEVICES', 'JAX_LOCAL_DEVICE_IDS']", options=options)
    assert status == 0
    expected = [{"CUDA_VISIBLE_DEVICES": share, "JAX_LOCAL_DEVICE_IDS": own} for share in shares]
    assert [environment for _, environment in told(stdout, stderr)] == expected


def test_too_few_gpus(four_gpus, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert "need 5 GPUs, but 4 can be seen" in refused("5", "--", "x")
    assert "need 6 GPUs, but 4 can be seen" in refused("2", "--devices=3", "--", "x")


def test_wrong_arguments():
    assert "expected 1 or more, found 0" in refused("0", "--", "x")
    assert "expected 1 or more, found -2" in refused("2", "--devices=-2", "--", "x")
    assert "-- is missing" in refused("2")
    assert "required: N" in refused("--", "x")
    assert "unrecognized arguments: --config" in refused("2", "--config", "--", "x")


@pytest.mark.parametrize(
    ("codes", "status", "said"),
    [
        (["time.sleep(1)", "sys.exit(3)"], 3, "process 1 ended with status 3; the others have 10 s to end"),
        (["pass", f"time.sleep(1); {DIE}"], 137, "process 1 was killed by SIGKILL"),
        (["sys.exit(75)", "time.sleep(1); sys.exit(1)"], 1, "process 1 ended with status 1"),
        (["sys.exit(75)"], 75, None),
        (["pass", "sys.exit(75)"], 75, None),
    ],
)
def test_status_is_that_of_the_first_to_fail_and_one_line_says_so(run, codes, status, said):
    found, _, stderr = run(2, *codes)
    assert found == status
    assert stderr == (f"local_cluster: error: {said}\n" if said else "")


def test_others_are_killed_after_the_grace_time_with_what_they_have_started(run):
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "  # it holds on to stderr
    started = time.monotonic()
    status, _, stderr = run(3, f"{child}time.sleep(60)", child + DIE, IGNORE, options=("--grace=1",))
    assert 1 < time.monotonic() - started < 5
    assert status == 137
    assert stderr.replace("[2] ready\n", "") == (
        "local_cluster: error: process 1 was killed by SIGKILL; the others have 1 s to end\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_request_to_stop_is_passed_on(start, number):
    launcher = start(2, SAVE)
    wait_until_ready(launcher, 2)
    launcher.send_signal(number)
    _, stderr = launcher.communicate(timeout=10)
    assert launcher.returncode == 75
    assert re.fullmatch("local_cluster: stopping: all processes save .*\n", stderr)


def test_second_request_to_stop_kills(start):
    launcher = start(2, IGNORE)
    wait_until_ready(launcher, 2)
    launcher.terminate()
    assert "stopping" in launcher.stderr.readline()
    assert launcher.poll() is None
    launcher.terminate()
    _, stderr = launcher.communicate(timeout=10)
    assert (launcher.returncode, stderr) == (137, "")


def test_noise_of_those_that_a_death_takes_along_is_dropped(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SPOKEN", str(tmp_path / "spoken"))
    said = "process 1: error: process 0 has not been heard of"
    # The first noise comes before the death that it tells of can be seen.
    first = f"print({GLOO!r})\nwhile not os.path.exists(os.environ['SPOKEN']): time.sleep(0.01)\n{DIE}"
    second = f"""
print({GLOO!r})
sys.stderr.write({NOISE!r})
pathlib.Path(os.environ["SPOKEN"]).touch()
time.sleep(1)
sys.stderr.write({said!r} + chr(10) + {NOISE!r})
os.abort()
"""
    status, stdout, stderr = run(2, first, second)
    assert (status, stdout) == (137, "")
    killed = "local_cluster: error: process 0 was killed by SIGKILL; the others have 10 s to end"
    assert stderr.splitlines() == [killed, f"[1] {said}"]


def test_noise_of_the_first_to_fail_is_shown(run):
    status, stdout, stderr = run(2, "time.sleep(0.5)", f"sys.stderr.write({NOISE!r}); os.abort()")
    assert (status, stdout) == (134, "")
    assert [line.removeprefix("[1] ") for line in stderr.splitlines() if line.startswith("[1] ")] == NOISE.splitlines()
    assert "process 1 was killed by SIGABRT" in stderr
