"""The loop: training, resuming, evaluating, and what it leaves in the workdir."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import yaml

from rgbd_jax import atomic_write
from rgbd_jax import train as train_module
from rgbd_jax.checkpoint.checkpoints import list_checkpoints
from rgbd_jax.checkpoint.metric_writers import NonFiniteLossError
from rgbd_jax.checkpoint.model_card import ModelCardData, write_model_card
from rgbd_jax.evaluate import evaluate
from rgbd_jax.model import Model
from rgbd_jax.train import train
from tests.tiny import saved_state, tiny_config


@pytest.fixture(scope="module")
def trained(small_demo, tmp_path_factory):
    """A finished run of two epochs: config, workdir, result."""
    config = tiny_config(small_demo)
    workdir = tmp_path_factory.mktemp("runs") / "two_epochs"
    return config, workdir, train(config, workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_result_and_metrics(trained):
    _, workdir, result = trained
    assert result["clips"] == 24
    assert 0 <= result["top1"] <= result["top5"] <= 1
    for name in ("top1_small", "top1_medium", "top1_large", "mean_per_class", "reference_protocol", "loss", "seconds"):
        assert np.isfinite(result[name]), name
    written = lines(workdir)
    assert [line["step"] for line in written if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in written if line["kind"] == "validation"] == [3, 6]
    assert all(line["gradient_norm"] > 0 for line in written if line["kind"] == "train")
    assert list((workdir / "tensorboard").glob("events*"))
    best = max(
        (line for line in written if line["kind"] == "validation"), key=lambda line: (line["top1"], line["step"])
    )
    assert best["step"] == result["step"]


def test_training_moves_every_weight_and_statistic(trained):
    config, workdir, _ = trained
    (params, batch_stats), end = Model(config, 12).init(config.seed), saved_state(config, workdir)
    for before, after in ((params, end.params), (batch_stats, end.batch_stats)):
        still = [
            jax.tree_util.keystr(path)
            for path, (a, b) in jax.tree_util.tree_leaves_with_path(
                jax.tree.map(lambda a, b: (np.asarray(a), np.asarray(b)), before, after),
                is_leaf=lambda x: isinstance(x, tuple),
            )
            if np.array_equal(a, b)
        ]
        assert not still


@pytest.mark.parametrize("which", ["best", "latest"])
def test_evaluation_gives_the_metrics_of_the_training(trained, which):
    config, workdir, _ = trained
    validation = [line for line in lines(workdir) if line["kind"] == "validation"]
    expected = max(validation, key=lambda line: (line["top1"], line["step"])) if which == "best" else validation[-1]
    found = evaluate(config, workdir, which)
    for name in expected.keys() - {"kind", "seconds"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_evaluation_does_not_depend_on_the_batch_size(trained):
    config, workdir, _ = trained
    results = []
    for batch_size in (24, 7):
        with config.unlocked():
            changed = config.copy_and_resolve_references()
        changed.eval.batch_size = batch_size
        results.append(evaluate(changed, workdir, "best"))
    for name in results[0].keys() - {"seconds"}:
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5), name


def test_interrupted_and_resumed_run_ends_bit_identical(trained, tmp_path, monkeypatch):
    config, workdir, result = trained
    calls = 0

    class InterruptedRunError(Exception):
        pass

    original = train_module.MetricAccumulator.add

    def add(self, figures):
        nonlocal calls
        calls += 1
        if calls == 5:  # in the middle of the second epoch
            raise InterruptedRunError
        original(self, figures)

    monkeypatch.setattr(train_module.MetricAccumulator, "add", add)
    with pytest.raises(InterruptedRunError):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    resumed = train(config, tmp_path / "run")

    for a, b in zip(
        jax.tree.leaves(saved_state(config, workdir)),
        jax.tree.leaves(saved_state(config, tmp_path / "run")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
    timeless = [
        [{k: v for k, v in line.items() if k not in ("clips_per_second", "input_wait_fraction")} for line in lines(w)]
        for w in (workdir, tmp_path / "run")
    ]
    assert timeless[0] == timeless[1]
    cards = [
        re.sub(r"\d{4}-\d\d-\d\dT\S+", "DATE", (w / "MODEL_CARD.md").read_text()) for w in (workdir, tmp_path / "run")
    ]
    assert cards[0] == cards[1]
    assert "resumed where something had changed" not in cards[1]


def card_rows(workdir):
    """The tables of a run's card: name of a row -> its cells."""
    rows = re.findall(r"^\| ([^|]+) \| (.+) \|$", (workdir / "MODEL_CARD.md").read_text(), re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def test_the_card_describes_the_run_and_its_accuracy(trained):
    config, workdir, result = trained
    card, rows = (workdir / "MODEL_CARD.md").read_text(), card_rows(workdir)
    validation = [line for line in lines(workdir) if line["kind"] == "validation"]
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


def test_the_card_of_a_finished_run_is_left_alone(trained, tmp_path):
    config, workdir, _ = trained
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    edited = (run / "MODEL_CARD.md").read_text() + "Added by hand.\n"
    (run / "MODEL_CARD.md").write_text(edited)
    train(config, run)
    assert (run / "MODEL_CARD.md").read_text() == edited


def test_the_card_records_the_initial_weights_and_changes(trained, small_demo, tmp_path, caplog):
    _, first, _ = trained
    config = tiny_config(small_demo)
    config.init_from, config.train.epochs = str(first), 1
    train(config, tmp_path / "run")
    loaded = "all weights that fit, except the last layers of the class heads (`config.init_from`); the rest random"
    assert card_rows(tmp_path / "run")["started from"] == [f"`{first}`: {loaded}"]
    assert "One epoch was evaluated" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    # Resumed without the field, on other clips: the initial weights remain recorded.
    config.init_from, config.train.epochs, config.data.eval_split = "", 2, "validation[:50%]"
    train(config, tmp_path / "run")
    card, rows = (tmp_path / "run" / "MODEL_CARD.md").read_text(), card_rows(tmp_path / "run")
    assert f"`{first}`" in rows["started from"][0]
    assert "- step 3: evaluation clips, clips: 24 there, 12 here" in card


def test_a_card_that_cannot_be_written_is_only_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(atomic_write.secrets, "token_hex", lambda _: "taken")
    (tmp_path / ".MODEL_CARD.md.taken.tmp").mkdir()
    write_model_card(tmp_path, ModelCardData({}))
    assert f"{tmp_path}/MODEL_CARD.md cannot be written: File exists" in caplog.text


def test_finished_run_is_not_trained_again(trained):
    config, workdir, result = trained
    again = train(config, workdir)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}


def test_workdir_of_another_config_is_refused_and_left_alone(trained, small_demo):
    _, workdir, _ = trained
    other = tiny_config(small_demo)
    other.loss.label_smoothing = 0.2
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    for run in (lambda: train(other, workdir), lambda: evaluate(other, workdir, "best")):
        with pytest.raises(ValueError, match=r"config.loss.label_smoothing: 0.1 there, 0.2 here"):
            run()
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_non_finite_loss_names_the_step(small_demo, tmp_path, monkeypatch):
    config = tiny_config(small_demo)
    original = train_module.schedule_at

    def poisoned(config, epoch, accuracies=()):
        schedule = original(config, epoch, accuracies)
        return dataclasses.replace(schedule, learning_rate=float("nan")) if epoch > 1 / 3 - 1e-6 else schedule

    monkeypatch.setattr(train_module, "schedule_at", poisoned)
    with pytest.raises(NonFiniteLossError, match="the loss of step 3 is nan"):
        train(config, tmp_path / "run")
    assert not list_checkpoints(tmp_path / "run")


def test_depth_trains(small_demo, tmp_path):
    config = tiny_config(small_demo, "depth")
    config.train.epochs = 1
    assert train(config, tmp_path / "run")["clips"] == 24
