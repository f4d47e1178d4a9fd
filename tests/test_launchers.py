"""The launchers for SLURM and TPU pod slices, with stand-ins for the commands that they call."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ARGUMENTS = ["--workdir", "/mnt/two words", "it's $HOME", '"`date`" \\ * ~ !', "", "a\nb", "--config.x=(1, 2);"]


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes commands that note their arguments and run a script; `stand_in.calls()` returns what was noted."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    calls = tmp_path / "calls"

    def stand_in(name, script="exit 0"):
        note = f"printf '%s\\x1f' {name} \"$@\" >>'{calls}'; printf '\\x1e' >>'{calls}'\n"
        executable(tmp_path / "bin" / name, note + script)

    def noted():
        return [call.split("\x1f")[:-1] for call in calls.read_text().split("\x1e")[:-1]] if calls.exists() else []

    stand_in.calls = noted
    return stand_in


@pytest.fixture
def slurm(tmp_path, stand_in, monkeypatch):
    """Runs slurm.sh in a checkout as SLURM does, with stand-ins for its commands; returns the status and stderr."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    copy, checkout = tmp_path / "spool", tmp_path / "checkout"
    copy.write_text((ROOT / "scripts" / "slurm.sh").read_text())
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)

    def slurm(srun, scontrol="exit 0", directory=checkout):
        stand_in("srun", f'[ "$SRUN_CPUS_PER_TASK" = 8 ] || exit 9\n{srun}')
        stand_in("scontrol", scontrol)
        finished = subprocess.run(
            ["bash", copy, *ARGUMENTS], cwd=directory, capture_output=True, text=True, timeout=120
        )
        return finished.returncode, finished.stderr

    return slurm


@pytest.mark.parametrize("status", [0, 137])
def test_slurm_passes_arguments_and_status_on(slurm, stand_in, status):
    assert slurm(f"exit {status}") == (status, "")
    ((name, *options),) = stand_in.calls()
    assert name == "srun"
    assert options[options.index(".venv/bin/python") :] == [".venv/bin/python", "-m", "rgbd_jax.main", *ARGUMENTS]
    assert "--kill-on-bad-exit=0" in options


def test_slurm_requeues_what_was_preempted(slurm, stand_in):
    assert slurm("exit 75") == (75, "saved; requeueing job 41\n")
    assert stand_in.calls()[1:] == [["scontrol", "requeue", "41"]]
    status, stderr = slurm("exit 75", scontrol="exit 1")
    assert (status, "cannot be requeued; submit the same command again" in stderr) == (75, True)


def test_slurm_does_not_requeue_what_is_to_end_for_good(slurm, stand_in):
    status, _ = slurm("kill -TERM $PPID; sleep 0.2; exit 75")
    assert (status, [call[0] for call in stand_in.calls()]) == (-signal.SIGTERM, ["srun"])


@pytest.mark.parametrize(("status", "starts"), [(137, 3), (1, 1)])
def test_slurm_starts_again_what_a_signal_killed(slurm, stand_in, monkeypatch, status, starts):
    monkeypatch.setattr("tests.test_launchers.ARGUMENTS", ["--restarts", "2", *ARGUMENTS])
    found, stderr = slurm(f"exit {status}")
    calls = stand_in.calls()
    assert (found, [call[0] for call in calls]) == (status, ["srun"] * starts)
    assert calls[-1][-1] == ARGUMENTS[-1]
    assert "--restarts" not in calls[-1]
    assert stderr.count("a process was killed by signal 9") == starts - 1


def test_slurm_outside_of_a_checkout(slurm, stand_in, tmp_path):
    status, stderr = slurm("exit 0", directory=tmp_path)
    assert (status, stand_in.calls()) == (1, [])
    assert f"no .venv/bin/python in {tmp_path}" in stderr


SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "us-central2-b", "--worker=all"]


@pytest.fixture
def worker(tmp_path):
    """The home folder of the one worker of a slice."""
    (tmp_path / "worker").mkdir()
    return tmp_path / "worker"


@pytest.fixture
def tpu_pod(worker, stand_in):
    """Runs tpu_pod.sh with a gcloud that runs the command in a shell of the worker, as ssh would."""
    stand_in("gcloud", f"cd '{worker}'; command=${{*: -1}}; exec bash -c \"${{command#--command=}}\"")

    def tpu_pod(*arguments):
        return subprocess.run(
            [ROOT / "scripts" / "tpu_pod.sh", *arguments], capture_output=True, text=True, timeout=120
        )

    return tpu_pod


def test_tpu_pod_shows_its_commands(tpu_pod):
    shown, refused = tpu_pod("--help"), tpu_pod("stop")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "./scripts/tpu_pod.sh stop NAME ZONE" in shown.stdout
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", shown.stdout)


@pytest.mark.parametrize(("status", "message"), [(1, ""), (75, "saved; run the same command again to resume\n")])
def test_tpu_pod_passes_arguments_as_they_are_and_the_status(tpu_pod, worker, stand_in, status, message):
    executable(worker / "rgbd_jax" / ".venv" / "bin" / "python", f'printf "%s\\0" "$PWD" "$@"; exit {status}')
    finished = tpu_pod("pod", "us-central2-b", *ARGUMENTS)
    assert (finished.returncode, finished.stderr) == (status, message)
    assert finished.stdout.split("\0")[:-1] == [str(worker / "rgbd_jax"), "-m", "rgbd_jax.main", *ARGUMENTS]
    (call,) = stand_in.calls()
    assert call[:-1] == SSH


@pytest.mark.parametrize(("status", "starts"), [(137, 3), (255, 1), (1, 1)])
def test_tpu_pod_starts_again_what_a_signal_killed(tpu_pod, worker, stand_in, status, starts):
    executable(worker / "rgbd_jax" / ".venv" / "bin" / "python", f"exit {status}")
    finished = tpu_pod("pod", "us-central2-b", "--restarts", "2", *ARGUMENTS)
    assert (finished.returncode, len(stand_in.calls())) == (status, starts)
    assert finished.stderr.count("a process was killed by signal 9") == starts - 1


@pytest.fixture
def repository(worker, stand_in):
    """Stand-ins for what the set-up of a worker calls, and for a repository whose set-up makes .venv."""
    checkout = worker / "rgbd_jax"
    stand_in("setup.sh")
    stand_in("sudo")
    clone = f'mkdir -p {checkout}/.git {checkout}/scripts && cp "$(command -v setup.sh)" {checkout}/scripts'
    stand_in("git", f"case $* in *remote*) echo 'https://example.com/a b.git' ;; clone*) {clone} ;; esac")
    stand_in("python3", "exit 0")


def test_tpu_pod_setup_clones_then_pulls(tpu_pod, stand_in, repository):
    for expected in (["git", "clone", "https://example.com/a b.git", "rgbd_jax"], ["git", "-C", "rgbd_jax", "pull"]):
        before = len(stand_in.calls())
        finished = tpu_pod("setup", "pod", "us-central2-b")
        assert (finished.returncode, finished.stderr) == (0, "")
        remote, gcloud, *pythons, git, setup = stand_in.calls()[before:]
        assert remote[-3:] == ["remote", "get-url", "origin"]
        assert gcloud[:-1] == SSH
        assert [call[0] for call in pythons] == ["python3", "python3"]
        assert git[:4] == expected
        assert setup == ["setup.sh", "tpu", "gcs"]


def test_tpu_pod_setup_installs_python(tpu_pod, stand_in, repository):
    stand_in("python3", "exit 1")  # too old
    stand_in("python3.11", "exit 1")  # without venv
    assert tpu_pod("setup", "pod", "us-central2-b", "git@example.com:x.git").returncode == 0
    commands = [call[1:] for call in stand_in.calls() if call[0] == "sudo"]
    assert commands[1] == ["apt-get", "-qq", "install", "--yes", "python3.11-venv"]
    assert ["git", "clone", "git@example.com:x.git", "rgbd_jax"] in stand_in.calls()


def test_tpu_pod_stop(tpu_pod, stand_in):
    stand_in("pkill", "exit 0")  # the real one would find runs of this machine
    assert tpu_pod("stop", "pod", "us-central2-b").returncode == 0
    ssh, (name, *options, pattern) = stand_in.calls()
    assert "--worker=0" in ssh
    assert (name, options) == ("pkill", ["--signal", "TERM", "--oldest", "--full"])
    assert re.search(pattern, ".venv/bin/python -m rgbd_jax.main --config configs/demo.py")
    assert not re.search(pattern, ssh[-1])
    stand_in("pkill", "exit 1")
    finished = tpu_pod("stop", "pod", "us-central2-b")
    assert finished.returncode == 1
    assert "no run on worker 0" in finished.stderr


@pytest.mark.parametrize("arguments", [[], ["pod", "zone"], ["setup", "pod"], ["stop", "pod", "zone", "more"]])
def test_tpu_pod_with_too_few_arguments(tpu_pod, stand_in, arguments):
    finished = tpu_pod(*arguments)
    assert (finished.returncode, finished.stdout, stand_in.calls()) == (2, "", [])
    assert "tpu_pod.sh setup NAME ZONE [REPOSITORY_URL]" in finished.stderr
