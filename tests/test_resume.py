"""A run that is stopped or killed at any moment resumes as if it had never been interrupted."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from rgbd_jax.checkpoint.checkpoints import list_checkpoints, read_metadata
from rgbd_jax.checkpoint.metric_writers import TIMING_METRICS, MetricAccumulator, NonFiniteLossError
from rgbd_jax.checkpoint.provenance import fingerprint, provenance, resumed_provenance
from rgbd_jax.data.source import open_split, prepared_directory
from rgbd_jax.evaluate import Evaluator, evaluate
from rgbd_jax.parallel.preemption import PreemptedError
from rgbd_jax.train import train
from tests.conftest import ROOT
from tests.test_main import TINY
from tests.tiny import saved_state, tiny_config


@pytest.fixture(scope="module")
def whole(small_demo, tmp_path_factory):
    """Config, workdir and result of an uninterrupted run: two epochs of three steps, lines at steps 2, 3, 4 and 6."""
    config = tiny_config(small_demo)
    config.train.log_every_steps = 2
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return config, workdir, train(config, workdir)


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [without(json.loads(line), TIMING_METRICS) for line in lines]


def assert_ends_as(whole, workdir):
    config, expected, result = whole
    assert without(train(config, workdir), ["seconds"]) == without(result, ["seconds"])
    jax.tree.map(np.testing.assert_array_equal, saved_state(config, workdir), saved_state(config, expected))
    assert logged(workdir) == logged(expected)


def before_call(monkeypatch, owner, name, number, action):
    """Runs an action right before the given call of a method."""
    original, calls = getattr(owner, name), []

    def method(self, *arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, method)


def test_sigterm_mid_epoch_saves_and_the_run_resumes_bit_by_bit(whole, tmp_path, monkeypatch):
    config, workdir, handler = whole[0], tmp_path / "run", signal.getsignal(signal.SIGTERM)
    before_call(monkeypatch, MetricAccumulator, "add", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(PreemptedError, match=r"saved step 5 of 6 in .*run: run the same command"):
        train(config, workdir)
    monkeypatch.undo()
    assert list_checkpoints(workdir)[0] == workdir / "recovery" / "5"
    assert len(read_metadata(list_checkpoints(workdir)[0]).accumulated) == 1  # step 5, whose line is not written yet
    assert signal.getsignal(signal.SIGTERM) == handler
    assert evaluate(config, workdir, "latest")["step"] == 5
    assert_ends_as(whole, workdir)


def test_ctrl_c_during_an_evaluation_saves_and_the_evaluation_is_repeated(whole, tmp_path, monkeypatch):
    config, workdir = whole[0], tmp_path / "run"
    before_call(monkeypatch, Evaluator, "_evaluate_views", 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(PreemptedError, match="saved step 6 of 6"):
        train(config, workdir)
    monkeypatch.undo()
    assert [path.parent.name for path in list_checkpoints(workdir)] == ["recovery", "checkpoints"]
    assert_ends_as(whole, workdir)


def test_a_loss_that_is_not_a_number_is_not_saved_and_damage_of_the_latest_checkpoint_changes_nothing(
    whole, tmp_path, monkeypatch, caplog
):
    config, workdir = whole[0].copy_and_resolve_references(), tmp_path / "run"
    config.checkpoint.every_steps = 2
    original, calls = MetricAccumulator.add, []

    def poisoned(self, metrics):
        calls.append(1)
        original(self, {**metrics, "loss": np.float32("nan")} if len(calls) == 6 else metrics)

    monkeypatch.setattr(MetricAccumulator, "add", poisoned)
    with pytest.raises(NonFiniteLossError, match="the loss of step 6 is nan"):
        train(config, workdir)
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(workdir)] == ["4", "3", "2"]
    largest = max((workdir / "recovery" / "4" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(largest.read_bytes())
    contents[len(contents) // 2] ^= 1
    largest.write_bytes(contents)
    assert_ends_as((config, *whole[1:]), workdir)
    assert str(largest) in caplog.text
    assert (workdir / "damaged" / "recovery" / "4").exists()


def test_provenance_follows_a_run_and_other_training_clips_are_refused(whole, small_demo, tmp_path, caplog):
    config = whole[0].copy_and_resolve_references()
    config.init_from = "jester.pth.tar"
    clips = open_split("rgbd_demo", str(small_demo), "train")
    first = provenance(config, clips, clips)
    assert first["data"]["training"] == first["data"]["evaluation"] == fingerprint(clips)
    assert first["data"]["training"]["version"] == prepared_directory("rgbd_demo", small_demo).name
    config.init_from = ""
    same = provenance(config, clips, clips)
    assert without(resumed_provenance(tmp_path, first, same, 5), ["started"]) == without(first, ["started"])
    assert not caplog.text
    upgraded = {**same, "versions": {**same["versions"], "jax": "0.0.1"}, "git": "abc"}
    resumed = resumed_provenance(tmp_path, first, upgraded, 7)
    assert f"step 7: jax: {jax.__version__} there, 0.0.1 here" in resumed["changes"]
    assert f"git revision: {first['git']} there, abc here" in caplog.text
    again = resumed_provenance(tmp_path, resumed, upgraded, 9)
    assert (again["changes"], again["started_from"]) == (resumed["changes"], {"init_from": "jester.pth.tar"})
    other = clips.select([1, 0, *range(2, len(clips))])
    with pytest.raises(ValueError, match=r"was trained on other clips(?s:.*)\n  training clips, sample: \w+ there"):
        resumed_provenance(tmp_path, first, provenance(config, other, clips), 7)


def test_the_command_ends_with_a_status_of_its_own(whole, small_demo, tmp_path):
    """SIGTERM right at the start, when nothing has been computed yet: the state of step 0 is saved."""
    script = (
        "import os, signal, sys, threading; from rgbd_jax.parallel import preemption\n"
        "original = preemption.PreemptionSync.__enter__\n"
        "def enter(self):\n"
        "    entered = original(self); os.kill(os.getpid(), signal.SIGTERM); return entered\n"
        "preemption.PreemptionSync.__enter__ = enter\n"
        "sys.argv[0] = 'main'\n"
        "import runpy; runpy.run_module('rgbd_jax.main', run_name='__main__', alter_sys=True)\n"
    )
    overrides = [f"--config.data.data_dir={small_demo}", f"--config.clip.size={whole[0].clip.size}"]
    command = [sys.executable, "-c", script, "--config", "configs/demo.py", "--workdir", tmp_path / "run", *overrides]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stdout) == (75, ""), finished.stderr
    assert "saved step 0 of" in finished.stderr
    assert list_checkpoints(tmp_path / "run")[0].name == "0"


@pytest.mark.slow
def test_a_disk_that_fills_up_or_is_read_only_costs_nothing_that_was_saved(whole, small_demo, tmp_path):
    """On a small file system in a mount namespace of its own, which is gone when the command ends."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    size = sum(file.stat().st_size for file in list_checkpoints(whole[1])[0].rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = [*TINY, "train.log_every_steps=2", "checkpoint.every_steps=1", f"data.data_dir={small_demo}"]
    command = [sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", f"{disk}/run"]
    run = shlex.join([*command, *(f"--config.{flag}" for flag in flags)])
    runs = [f"{run} >{tmp_path}/{when}.out 2>{tmp_path}/{when}.err; echo $?" for when in ("full", "read-only", "again")]
    commands = [
        # Two checkpoints are kept while a third is written, and then that of the epoch.
        f"mount -t tmpfs -o size={int(size * 3.2)} tmpfs {disk} || exit 99",
        runs[0],
        f"mount -o remount,ro {disk}",
        runs[1],
        f"mount -o remount,rw,size={size * 20} {disk}",
        runs[2],
        f"cp -r {disk}/run {tmp_path}/run",
    ]
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    finished = subprocess.run(
        [*unshare, "sh", "-c", "\n".join(commands)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    if finished.returncode == 99 or "unshare failed" in finished.stderr:
        pytest.skip("a small disk cannot be mounted here")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["1", "1", "0"]
    errors = {when: (tmp_path / f"{when}.err").read_text() for when in ("full", "read-only", "again")}
    for when in ("full", "read-only"):
        assert (tmp_path / f"{when}.out").read_text() == ""
        assert errors[when].count("error: ") == 1
        assert "Traceback" not in errors[when]
    assert re.search(r"error: the checkpoint of step \d .*: No space left on device; .*is intact: make", errors["full"])
    assert f"error: {disk}/run/config.json cannot be written: Read-only file system; " in errors["read-only"]
    assert re.search(r"resumed from step [1-6] of 6", errors["again"])
    assert_ends_as(whole, tmp_path / "run")
