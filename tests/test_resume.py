"""A run that is asked to stop, or killed, at any moment goes on as if nothing had been."""

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

from rgbd_jax.checkpoint.checkpoints import CheckpointMetadata, read_run, saved
from rgbd_jax.checkpoint.metric_accumulator import MetricAccumulator, NonFiniteLossError
from rgbd_jax.parallel.preemption import PreemptedError
from rgbd_jax.checkpoint.provenance import check_provenance, continued_provenance, fingerprint, provenance
from rgbd_jax.data.source import PreparedSplit, open_split, prepared_directory
from rgbd_jax.evaluate import Evaluator, evaluate
from rgbd_jax.train import train
from tests.conftest import ROOT
from tests.test_main import TINY
from tests.tiny import saved_state, tiny_config


def config_of(small_demo):
    """Three steps an epoch, lines of the log for steps 2, 3, 4 and 6: a stop at step 5 is between two lines."""
    config = tiny_config(small_demo)
    config.train.log_every_steps = 2
    return config


@pytest.fixture(scope="module")
def whole(small_demo, tmp_path_factory):
    """A run of two epochs that nothing happened to: config, workdir, result."""
    config = config_of(small_demo)
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return config, workdir, train(config, workdir)


def timeless(workdir):
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = ("clips_per_second", "input_wait_fraction")
    return [{name: value for name, value in line.items() if name not in clock} for line in written]


def assert_ends_as(whole, workdir):
    config, expected, result = whole
    again = train(config, workdir)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
    for a, b in zip(
        jax.tree.leaves(saved_state(config, workdir)), jax.tree.leaves(saved_state(config, expected)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert timeless(workdir) == timeless(expected)


def after_calls(monkeypatch, owner, name, number, action):
    """Does something in the given call of a method, before the method itself."""
    original, calls = getattr(owner, name), []

    def method(self, *arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_an_epoch_saves_and_the_run_goes_on_bit_by_bit(whole, tmp_path, monkeypatch, number):
    config, workdir, before = whole[0], tmp_path / "run", signal.getsignal(number)
    after_calls(monkeypatch, MetricAccumulator, "add", 5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(PreemptedError, match=r"saved step 5 of 6 in .*run: the same command goes on from there"):
        train(config, workdir)
    monkeypatch.undo()
    assert saved(workdir)[0] == workdir / "recovery" / "5"
    assert len(read_run(saved(workdir)[0]).recent) == 1  # the figures of step 5, whose line is not written yet
    assert signal.getsignal(number) == before
    if number == signal.SIGTERM:
        assert evaluate(config, workdir, "latest")["step"] == 5
        assert_ends_as(whole, workdir)


def test_a_signal_amid_an_evaluation_saves_and_the_evaluation_is_done_again(whole, tmp_path, monkeypatch):
    config, workdir = whole[0], tmp_path / "run"
    after_calls(monkeypatch, Evaluator, "_scores", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(PreemptedError, match="saved step 6 of 6"):
        train(config, workdir)
    monkeypatch.undo()
    assert [path.parent.name for path in saved(workdir)] == ["recovery", "checkpoints"]
    assert_ends_as(whole, workdir)


def test_checkpoints_amid_epochs_and_damage_of_the_latest_change_nothing(whole, tmp_path, monkeypatch, caplog):
    config, workdir = whole[0].copy_and_resolve_references(), tmp_path / "run"
    config.checkpoint.every_steps = 2

    class KilledError(Exception):
        pass

    def kill():
        raise KilledError

    after_calls(monkeypatch, MetricAccumulator, "add", 6, kill)
    with pytest.raises(KilledError):
        train(config, workdir)
    monkeypatch.undo()
    assert [path.name for path in saved(workdir)] == ["4", "3", "2"]
    state = workdir / "recovery" / "4" / "state"
    largest = max(state.rglob("d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(largest.read_bytes())
    contents[len(contents) // 2] ^= 1
    largest.write_bytes(contents)
    assert_ends_as((config, *whole[1:]), workdir)
    assert str(largest) in caplog.text
    assert (workdir / "damaged" / "recovery" / "4").exists()


def test_a_state_whose_loss_is_not_a_number_is_not_saved(whole, tmp_path, monkeypatch):
    config, workdir = whole[0].copy_and_resolve_references(), tmp_path / "run"
    config.checkpoint.every_steps = 1
    original, calls = MetricAccumulator.add, []

    def poisoned(self, figures):
        calls.append(1)
        original(self, {**figures, "loss": np.float32("nan")} if len(calls) == 2 else figures)

    monkeypatch.setattr(MetricAccumulator, "add", poisoned)
    with pytest.raises(NonFiniteLossError, match="the loss of step 2 is nan"):
        train(config, workdir)
    assert [path.name for path in saved(workdir)] == ["1"]


def test_other_training_clips_are_refused_and_explained(whole, small_demo, tmp_path):
    config, workdir, _ = whole
    copy = tmp_path / "data"
    shutil.copytree(small_demo, copy)
    (info,) = copy.glob("rgbd_demo/*/dataset_info.json")
    contents = json.loads(info.read_text())
    for split in contents["splits"]:
        split["shardLengths"] = ["47"] if split["name"] == "train" else split["shardLengths"]
    info.write_text(json.dumps(contents))
    other = config.copy_and_resolve_references()
    other.data.data_dir, other.train.epochs = str(copy), 3
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    with pytest.raises(ValueError, match=r"was trained on other clips(?s:.*)training clips, clips: 48 there, 47 here"):
        train(other, run)


def test_other_contents_have_another_fingerprint(small_demo):
    clips = open_split("rgbd_demo", str(small_demo), "train")
    known = fingerprint(clips)
    assert fingerprint(open_split("rgbd_demo", str(small_demo), "train")) == known
    other = clips.select([1, 0, *range(2, len(clips))])
    assert {name for name in known if fingerprint(other)[name] != known[name]} == {"sample"}
    assert isinstance(clips, PreparedSplit)
    assert known["version"] == prepared_directory("rgbd_demo", small_demo).name


def test_other_versions_are_told_but_do_not_stop_the_run(small_demo, tmp_path, caplog):
    clips = open_split("rgbd_demo", str(small_demo), "train")
    here = provenance(clips, clips)
    check_provenance(tmp_path, here, here)
    check_provenance(tmp_path, {}, here)
    assert not caplog.text
    there = {**here, "versions": {**here["versions"], "jax": "0.0.1"}, "git": "abc", "machine": {"devices": 8}}
    check_provenance(tmp_path, there, {**here, "git": "def"})
    for said in (f"jax: 0.0.1 there, {jax.__version__} here", "git revision: abc there, def here", "devices: 8 there"):
        assert said in caplog.text


def test_a_run_of_an_older_version_began_and_started_where_its_checkpoint_says(small_demo):
    clips = open_split("rgbd_demo", str(small_demo), "train")
    here = provenance(clips, clips)
    config = {"modality": "rgb", "init_from": "jester.pth.tar", "fusion": {"init_rgb_from": "not of this stream"}}
    there = {**here, "started": "2020-01-01", "versions": {**here["versions"], "jax": "0.0.1"}}
    found = continued_provenance(CheckpointMetadata({}, [], config=config, provenance=there), here, 7)
    assert (found["begun"], found["started_from"]) == ("2020-01-01", {"init_from": "jester.pth.tar"})
    assert found["changes"] == [f"step 7: jax: 0.0.1 there, {jax.__version__} here"]
    # Going on once more, as it is now: nothing is added, nothing is lost.
    again = continued_provenance(CheckpointMetadata({}, [], config={"modality": "rgb"}, provenance=found), here, 9)
    assert {name: again[name] for name in found} == found
    assert "started_from" not in continued_provenance(CheckpointMetadata({}, []), here, 0)


def test_the_command_ends_with_a_status_of_its_own(whole, small_demo, tmp_path):
    """SIGTERM right at the start, while nothing has been computed yet: the state of step 0 is saved."""
    config = whole[0]
    script = (
        "import os, signal, sys, threading; from rgbd_jax.parallel import preemption\n"
        "original = preemption.PreemptionSync.__enter__\n"
        "def enter(self):\n"
        "    entered = original(self); os.kill(os.getpid(), signal.SIGTERM); return entered\n"
        "preemption.PreemptionSync.__enter__ = enter\n"
        "sys.argv[0] = 'main'\n"
        "import runpy; runpy.run_module('rgbd_jax.main', run_name='__main__')\n"
    )
    overrides = [f"--config.data.data_dir={small_demo}", f"--config.clip.size={config.clip.size}"]
    command = [sys.executable, "-c", script, "--config", "configs/demo.py", "--workdir", tmp_path / "run", *overrides]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stdout) == (75, ""), finished.stderr
    assert "asked to stop, saved step 0 of" in finished.stderr
    assert saved(tmp_path / "run")[0].name == "0"


@pytest.mark.slow
def test_a_disk_that_fills_up_or_is_read_only_costs_nothing_that_was_saved(whole, small_demo, tmp_path):
    """On a small file system of its own, in a name space of its own: it is gone when the command ends."""
    checkpoint = saved(whole[1])[0]
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = [*TINY, "train.log_every_steps=2", "checkpoint.every_steps=1", f"data.data_dir={small_demo}"]
    run = shlex.join(
        [
            sys.executable, "-m", "rgbd_jax.main", "--config", "configs/demo.py", "--workdir", f"{disk}/run",
            *(f"--config.{flag}" for flag in flags),
        ]
    )  # fmt: skip
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
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not there to make a small disk with")
    finished = subprocess.run(
        [*unshare, "sh", "-c", "\n".join(commands)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    if finished.returncode == 99 or "unshare failed" in finished.stderr:
        pytest.skip("a small disk cannot be mounted here")
    assert finished.returncode == 0, finished.stderr

    assert finished.stdout.split() == ["1", "1", "0"]
    said = {when: (tmp_path / f"{when}.err").read_text() for when in ("full", "read-only", "again")}
    for when in ("full", "read-only"):
        assert (tmp_path / f"{when}.out").read_text() == ""
        assert said[when].count("error: ") == 1
        assert "Traceback" not in said[when]
    assert re.search(
        r"error: the checkpoint of step \d .*: No space left on device; .*is intact: make room", said["full"]
    )
    assert f"error: {disk}/run/config.json cannot be written: Read-only file system; " in said["read-only"]
    assert re.search(r"resumed from step [1-6] of 6", said["again"])
    assert_ends_as(whole, tmp_path / "run")
