"""The launcher of a group of processes on one machine, with a stand-in for the training."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

LAUNCHER = ROOT / "scripts" / "local_cluster.py"

# A process of a group: runs the code that its arguments hold for it; the last one is for all further processes too.
MEMBER = """
import json, os, pathlib, signal, subprocess, sys, time
*codes, coordinator, count, index = sys.argv[1:]
number = int(index.removeprefix("--process_index="))
exec(codes[min(number, len(codes) - 1)])
"""
PRINT = "print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in %s}]))"
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', file=sys.stderr); time.sleep(60)"
SAVE = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', file=sys.stderr); time.sleep(60)"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the launcher with code for its processes in place of the training."""
    (tmp_path / "member.py").write_text(MEMBER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    started = []

    def start(processes, *codes, options=()):
        command = [sys.executable, LAUNCHER, str(processes), "--module=member", *options, "--", *codes]
        # A shell's background jobs ignore SIGINT.
        restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "surrogateescape"}
        started.append(subprocess.Popen(command, preexec_fn=restore, **pipes))
        return started[-1]

    yield start
    for launcher in started:
        launcher.terminate()
        launcher.send_signal(signal.SIGINT)  # the second request: its processes are killed
        launcher.communicate(timeout=120)


@pytest.fixture
def run(start):
    """Runs the launcher to its end; returns its status, stdout and stderr."""

    def run(*arguments, **options):
        launcher = start(*arguments, **options)
        stdout, stderr = launcher.communicate(timeout=120)
        return launcher.returncode, stdout, stderr

    return run


@pytest.fixture
def printed(run):
    """Runs the launcher; returns arguments and environment of each process, which runs `PRINT`."""

    def printed(*arguments, **options):
        status, stdout, stderr = run(*arguments, **options)
        assert status == 0
        others = dict(line.split(" ", 1) for line in stderr.splitlines())
        return [json.loads(text) for text in (stdout, *(others[f"[{index + 1}]"] for index in range(len(others))))]

    return printed


def wait_until_ready(launcher, processes):
    for _ in range(processes):
        assert "ready" in launcher.stderr.readline()


def test_every_process_gets_the_arguments_and_its_number(printed):
    theirs = (*[PRINT % "[]"] * 3, "--name=two words", "$HOME 'x'", "--")
    found = [arguments for arguments, _ in printed(3, *theirs)]
    address = found[0][-3]
    assert re.fullmatch(r"--coordinator=localhost:\d{4,5}", address)
    assert found == [[*theirs, address, "--process_count=3", f"--process_index={index}"] for index in range(3)]


def test_output_of_the_first_passes_as_it_is_that_of_others_with_their_index(run):
    write = r"sys.stdout.buffer.write(b'one\n\xfftwo\n'); sys.stdout.flush(); sys.stderr.write('three\n\nfour\n')"
    status, stdout, stderr = run(2, write, f"time.sleep(1); {write}")
    found = [text.encode(errors="surrogateescape") for text in (stdout, stderr)]
    others = b"[1] one\n[1] \xfftwo\n[1] three\n[1] \n[1] four\n"
    assert (status, found) == (0, [b"one\n\xfftwo\n", b"three\n\nfour\n" + others])


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
    ("visible", "platforms", "options", "shares"),
    [
        (None, "", [], ["0,1", "2,3"]),
        (None, "cuda,cpu", ["--devices=1"], ["0", "1"]),
        ("3,GPU-1, 0", "", [], ["3", "GPU-1"]),
        ("2,1,-1,0", "", [], ["2", "1"]),
        ("", "", [], ["", ""]),
        (None, "cpu", [], [None, None]),
    ],
)
def test_gpus_are_divided(printed, four_gpus, monkeypatch, visible, platforms, options, shares):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    found = printed(2, PRINT % "['CUDA_VISIBLE_DEVICES']", options=options)
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in found] == shares


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["5", "--", "x"], "5 processes with 1 GPUs each, but 4 GPUs are visible"),
        (["2", "--devices=3", "--", "x"], "2 processes with 3 GPUs each, but 4 GPUs are visible"),
        (["0", "--", "x"], "N and K must be 1 or more"),
        (["2"], "-- is missing"),
        (["2", "--config", "--", "x"], "unrecognized arguments: --config"),
    ],
)
def test_wrong_arguments(four_gpus, monkeypatch, arguments, message):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    finished = subprocess.run([sys.executable, LAUNCHER, *arguments], capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert message in finished.stderr


@pytest.mark.parametrize(
    ("codes", "status", "message"),
    [
        (["time.sleep(1)", "sys.exit(3)"], 3, "process 1 ended with status 3; the others have 30 s to end"),
        (["pass", f"time.sleep(1); {DIE}"], 137, "process 1 ended with status 137"),
        (["sys.exit(75)", "time.sleep(1); sys.exit(1)"], 1, "process 1 ended with status 1"),
        (["pass", "sys.exit(75)"], 75, None),
    ],
)
def test_status_is_that_of_the_first_to_fail(run, codes, status, message):
    expected = f"local_cluster: error: {message}\n" if message else ""
    assert run(2, *codes) == (status, "", expected)


def test_others_are_killed_after_the_grace_time_with_what_they_have_started(run):
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "  # it holds on to the output
    started = time.monotonic()
    status, _, stderr = run(3, f"{child}time.sleep(60)", "sys.exit(4)", f"{child}{IGNORE}", options=("--grace=1",))
    assert 1 < time.monotonic() - started < 50
    assert status == 4
    assert "local_cluster: error: process 1 ended with status 4; the others have 1 s to end\n" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_request_to_stop_is_passed_on(start, number):
    launcher = start(2, SAVE)
    wait_until_ready(launcher, 2)
    launcher.send_signal(number)
    _, stderr = launcher.communicate(timeout=120)
    assert launcher.returncode == 75
    assert "local_cluster: stopping: all processes save" in stderr


def test_second_request_to_stop_kills(start):
    launcher = start(2, IGNORE)
    wait_until_ready(launcher, 2)
    launcher.terminate()
    assert "stopping" in launcher.stderr.readline()
    assert launcher.poll() is None
    launcher.terminate()
    _, stderr = launcher.communicate(timeout=120)
    assert (launcher.returncode, stderr) == (137, "")


ONCE = "mark = pathlib.Path(%r); seen = mark.exists(); mark.touch(); "


def test_a_group_that_loses_a_process_is_started_again(run, tmp_path):
    lost_once = ONCE % str(tmp_path / "mark") + f"seen or {DIE}"
    assert run(2, "print(1)", lost_once)[0] == 137
    (tmp_path / "mark").unlink()
    status, stdout, stderr = run(2, "print(1)", lost_once, options=("--restarts=3",))
    assert (status, stdout) == (0, "1\n1\n")
    assert stderr.endswith("local_cluster: restart 1 of 3: a process was killed by signal 9\n")


@pytest.mark.parametrize(("code", "expected", "starts"), [(DIE, 137, 3), ("sys.exit(1)", 1, 1)])
def test_restarts_end_after_their_number_and_not_for_errors(run, code, expected, starts):
    status, stdout, _ = run(2, "print(1)", f"time.sleep(0.5); {code}", options=("--restarts=2",))
    assert (status, stdout) == (expected, "1\n" * starts)
