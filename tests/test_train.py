"""The loop: training, what it leaves in the workdir, and runs that resume as if they had never been interrupted."""

import dataclasses
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
import yaml

from rgbd_jax import atomic_write
from rgbd_jax import training as train_module
from rgbd_jax.checkpoint.checkpoints import list_checkpoints, read_metadata
from rgbd_jax.checkpoint.metric_writers import TIMING_METRICS, MetricAccumulator, NonFiniteLossError
from rgbd_jax.checkpoint.model_card import ModelCardData, write_model_card
from rgbd_jax.checkpoint.provenance import fingerprint, provenance, resumed_provenance
from rgbd_jax.checkpoint.workdir import locked, read_config
from rgbd_jax.data.source import open_split, prepared_directory
from rgbd_jax.evaluation import Evaluator, evaluate
from rgbd_jax.model import Model
from rgbd_jax.parallel.preemption import PreemptedError
from rgbd_jax.step import Steps
from rgbd_jax.training import train
from tests.conftest import ROOT
from tests.test_main import TINY
from tests.tiny import saved_state, tiny_config


def uninterrupted(stream, data_dir, workdir):
    """Config, workdir and result of a run: two epochs of three steps, lines at steps 2, 3, 4 and 6."""
    config = tiny_config(data_dir, stream)
    config.train.log_every_steps = 2
    return config, workdir, train(config, workdir)


@pytest.fixture(scope="module")
def trained(small_demo, tmp_path_factory):
    return uninterrupted("rgb", small_demo, tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(scope="module")
def trained_umdr(small_demo, tmp_path_factory):
    return uninterrupted("umdr_rgb", small_demo, tmp_path_factory.mktemp("runs") / "trained_umdr")


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def lines(workdir, kind):
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [without(line, TIMING_METRICS) for line in written if line["kind"] == kind]


def card_rows(workdir):
    """The tables of a run's card: name of a row -> its cells."""
    rows = re.findall(r"^\| ([^|]+) \| (.+) \|$", (workdir / "MODEL_CARD.md").read_text(), re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def assert_ends_as(trained, workdir):
    config, expected, result = trained
    assert without(train(config, workdir), ["seconds"]) == without(result, ["seconds"])
    jax.tree.map(np.testing.assert_array_equal, saved_state(config, workdir), saved_state(config, expected))
    cards = []
    for folder in (workdir, expected):
        card = re.sub(r"\d{4}-\d\d-\d\dT\S+", "DATE", (folder / "MODEL_CARD.md").read_text())
        cards.append(re.sub(r"```sh\n.*?```", "COMMAND", card, flags=re.DOTALL))
    assert cards[0] == cards[1]
    for kind in ("train", "validation"):
        assert lines(workdir, kind) == lines(expected, kind)


def before_call(monkeypatch, owner, name, number, action):
    """Runs an action right before the given call of a method."""
    original, calls = getattr(owner, name), []

    def method(self, *arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, method)


def test_result_and_metrics(trained):
    _, workdir, result = trained
    assert result["clips"] == 24
    assert 0 <= result["top1"] <= result["top5"] <= 1
    for name in ("top1_small", "top1_medium", "top1_large", "mean_per_class", "reference_protocol", "loss", "seconds"):
        assert np.isfinite(result[name]), name
    steps, validation = lines(workdir, "train"), lines(workdir, "validation")
    assert [line["step"] for line in steps] == [2, 3, 4, 6]
    assert [line["step"] for line in validation] == [3, 6]
    assert all(line["gradient_norm"] > 0 for line in steps)
    assert list((workdir / "tensorboard").glob("events*"))
    assert max(validation, key=lambda line: (line["top1"], line["step"]))["step"] == result["step"]


def test_training_moves_every_weight_and_statistic(trained):
    config, workdir, _ = trained
    (params, batch_stats), end = Model(config, 12).init(config.seed), saved_state(config, workdir)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), (params, batch_stats), (end.params, end.batch_stats))
    assert not [jax.tree_util.keystr(path) for path, each in jax.tree_util.tree_leaves_with_path(moved) if not each]


def test_the_card_describes_the_run_and_its_accuracy(trained):
    config, workdir, result = trained
    card, rows = (workdir / "MODEL_CARD.md").read_text(), card_rows(workdir)
    validation = lines(workdir, "validation")
    shown = [next(line for line in validation if line["step"] == result["step"])]
    if validation[-1]["step"] != result["step"]:
        shown.append(validation[-1])
    for key, name in {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}.items():
        assert rows[name] == [f"{line[key]:.2%}" for line in shown], name
    for branch in ("small", "medium", "large"):
        assert rows[f"top-1 of {branch} alone"] == [f"{line[f'top1_{branch}']:.2%}" for line in shown]
    assert rows["step"] == [str(line["step"]) for line in shown]
    assert rows["clips"] == ["24"] * len(shown)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(saved_state(config, workdir).params))
    assert rows["size"] == [f"{parameters:,} parameters, width 0.125"]
    assert rows["input"] == ["8 RGB frames of a clip, 3 channels, 32x32 pixels"]
    assert rows["started from"] == ["random weights (scratch)"]
    assert rows["epochs"] == ["2 done of 2"]
    assert rows["trained on"][0].startswith("48 clips, split `train`; fingerprint")
    assert "0 swipe_left, " in card
    assert "so its metrics are optimistic" in card

    front = yaml.safe_load(card.split("---\n")[1])
    (model,) = front["model-index"]
    (measured,) = model["results"]
    assert measured["dataset"]["split"] == "validation"
    assert measured["metrics"][0]["value"] == pytest.approx(100 * result["top1"], abs=1e-4)


def test_a_finished_run_is_not_trained_again_and_its_card_is_left_alone(trained, tmp_path):
    config, workdir, result = trained
    run = shutil.copytree(workdir, tmp_path / "run")
    edited = (run / "MODEL_CARD.md").read_text() + "Added by hand.\n"
    (run / "MODEL_CARD.md").write_text(edited)
    assert without(train(config, run), ["seconds"]) == without(result, ["seconds"])
    assert (run / "MODEL_CARD.md").read_text() == edited


def test_the_card_records_the_initial_weights_and_changes(trained, small_demo, tmp_path):
    _, first, _ = trained
    config, run = tiny_config(small_demo), tmp_path / "run"
    config.init_from, config.train.epochs = str(first), 1
    assert train(config, run)["clips"] == 24
    loaded = "all weights that fit, except the last layers of the class heads (`config.init_from`); the rest random"
    assert card_rows(run)["started from"] == [f"`{first}`: {loaded}"]
    assert "One epoch was evaluated" in (run / "MODEL_CARD.md").read_text()
    # Resumed without the field, on other clips: the initial weights remain recorded.
    config.init_from, config.train.epochs, config.data.eval_split = "", 2, "validation[:50%]"
    train(config, run)
    assert f"`{first}`" in card_rows(run)["started from"][0]
    assert "- step 3: evaluation clips, clips: 24 there, 12 here" in (run / "MODEL_CARD.md").read_text()


def test_a_card_that_cannot_be_written_is_only_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(atomic_write.secrets, "token_hex", lambda _: "taken")
    (tmp_path / ".MODEL_CARD.md.taken.tmp").mkdir()
    write_model_card(tmp_path, ModelCardData({}))
    assert f"{tmp_path}/MODEL_CARD.md cannot be written: File exists" in caplog.text


def test_workdir_of_another_config_is_refused_and_left_alone(trained, small_demo):
    _, workdir, _ = trained
    other = tiny_config(small_demo)
    other.loss.label_smoothing = 0.2
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    for run in (lambda: train(other, workdir), lambda: evaluate(other, workdir, "best")):
        with pytest.raises(ValueError, match=r"config.loss.label_smoothing: 0.1 there, 0.2 here"):
            run()
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.parametrize("network", ["trained", pytest.param("trained_umdr", marks=pytest.mark.slow)])
def test_a_run_stopped_mid_epoch_and_in_an_evaluation_resumes_bit_by_bit(network, request, tmp_path, monkeypatch):
    trained = request.getfixturevalue(network)
    config, workdir, handler = trained[0], tmp_path / "run", signal.getsignal(signal.SIGTERM)
    before_call(monkeypatch, MetricAccumulator, "add", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(PreemptedError, match=r"saved step 5 of 6 in .*run: run the same command"):
        train(config, workdir)
    monkeypatch.undo()
    assert list_checkpoints(workdir)[0] == workdir / "recovery" / "5"
    assert len(read_metadata(list_checkpoints(workdir)[0]).accumulated) == 1  # step 5, whose line is not written yet
    assert signal.getsignal(signal.SIGTERM) == handler
    assert evaluate(config, workdir, "latest")["step"] == 5

    before_call(monkeypatch, Evaluator, "_evaluate_views", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(PreemptedError, match="saved step 6 of 6"):
        train(config, workdir)
    monkeypatch.undo()
    assert list_checkpoints(workdir)[0] == workdir / "recovery" / "6"
    assert_ends_as(trained, workdir)
    assert list_checkpoints(workdir)[0] == workdir / "checkpoints" / "6"


def test_a_loss_that_is_not_a_number_is_not_saved_and_damage_of_the_latest_checkpoint_changes_nothing(
    trained, tmp_path, monkeypatch, caplog
):
    config, workdir = trained[0].copy_and_resolve_references(), tmp_path / "run"
    config.checkpoint.every_steps = 2
    original = train_module.schedule_at

    def poisoned(config, epoch, accuracies=()):
        schedule = original(config, epoch, accuracies)
        return dataclasses.replace(schedule, learning_rate=float("nan")) if epoch > 4 / 3 - 1e-6 else schedule

    monkeypatch.setattr(train_module, "schedule_at", poisoned)
    with pytest.raises(NonFiniteLossError, match="the loss of step 6 is nan"):
        train(config, workdir)
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(workdir)] == ["4", "3", "2"]
    largest = max((workdir / "recovery" / "4" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(largest.read_bytes())
    contents[len(contents) // 2] ^= 1
    largest.write_bytes(contents)
    assert_ends_as((config, *trained[1:]), workdir)
    assert str(largest) in caplog.text
    assert (workdir / "damaged" / "recovery" / "4").exists()


def test_a_run_whose_checkpoints_are_lost_begins_anew_only_when_told_to(trained, tmp_path, caplog):
    config, workdir = trained[0], shutil.copytree(trained[1], tmp_path / "run")
    metrics = workdir / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 7, "kind": "train", "loss": 1.0}\n')
    before = metrics.read_bytes()
    for kind in ("checkpoints", "recovery"):
        shutil.rmtree(workdir / kind)  # such as a disk that is not mounted
    with pytest.raises(ValueError, match=r"has metrics up to step 7, but no checkpoint: .*begin anew with --restart"):
        train(config, workdir)
    assert metrics.read_bytes() == before
    assert not (workdir / "checkpoints").exists()
    train(config, workdir, restart=True)
    assert (workdir / "metrics.before_restart_1.jsonl").read_bytes() == before
    assert_ends_as(trained, workdir)
    before = metrics.read_bytes()
    shutil.rmtree(workdir / "checkpoints")  # two epochs alone: the run may have been killed in its first save
    train(config, workdir)
    assert (workdir / "metrics.before_restart_2.jsonl").read_bytes() == before
    assert (
        "run has no checkpoint and begins anew; its metrics so far are kept in metrics.before_restart_2" in caplog.text
    )
    assert_ends_as(trained, workdir)
    with metrics.open("ab") as file:
        file.write(b'{"step": \xff}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:\d+ is damaged"):
        train(config, workdir)


def test_one_process_alone_trains_in_a_workdir(trained, tmp_path):
    config, workdir = trained[0], tmp_path / "run"
    holder = "import sys, time; from pathlib import Path; from rgbd_jax.checkpoint.workdir import locked\n"
    holder += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(workdir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        with pytest.raises(ValueError, match=rf"run is in use by process {process.pid} on \S+: wait until it ends"):
            train(config, workdir)
        assert [path.name for path in workdir.iterdir()] == [".lock"]
    finally:
        process.kill()
        process.wait()
    with locked(workdir):  # the lock of a killed process is free
        assert (workdir / ".lock").exists()


def test_a_start_that_failed_leaves_the_workdir_to_another_config(trained, small_demo, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    monkeypatch.setattr(Steps, "train", lambda *_: 1 / 0)
    for config in (tiny_config(small_demo, "depth"), trained[0]):
        with pytest.raises(ZeroDivisionError):
            train(config, workdir)
        assert read_config(workdir).modality == config.modality


def test_provenance_follows_a_run_and_other_training_clips_are_refused(trained, small_demo, tmp_path, caplog):
    config = trained[0].copy_and_resolve_references()
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


def test_the_command_ends_with_a_status_of_its_own(small_demo, tmp_path):
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
    overrides = [f"--config.{flag}" for flag in (*TINY, f"data.data_dir={small_demo}")]
    command = [sys.executable, "-c", script, "--config", "configs/demo.py", "--workdir", tmp_path / "run", *overrides]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stdout) == (75, ""), finished.stderr
    assert "saved step 0 of" in finished.stderr
    assert list_checkpoints(tmp_path / "run")[0].name == "0"


@pytest.mark.slow
def test_a_disk_that_fills_up_or_is_read_only_costs_nothing_that_was_saved(trained, small_demo, tmp_path):
    """On a small file system in a mount namespace of its own, which is gone when the command ends."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    size = sum(file.stat().st_size for file in list_checkpoints(trained[1])[0].rglob("*") if file.is_file())
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
    assert f"error: {disk}/run cannot be written: Read-only file system; " in errors["read-only"]
    assert re.search(r"resumed from step [1-6] of 6", errors["again"])
    assert_ends_as(trained, tmp_path / "run")
