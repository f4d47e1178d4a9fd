"""Writers of metrics beside `metrics.jsonl`."""

import importlib.util
import json
import math
import sys
import types

import pytest

from rgbd_jax import config_rules
from rgbd_jax.checkpoint import writers
from rgbd_jax.checkpoint.metric_writers import JSONL_FILE, MetricWriter, read_metrics
from rgbd_jax.config import check_config
from rgbd_jax.tools.report.source import read_curves
from rgbd_jax.training import train
from tests.tiny import tiny_config


class FakeRun:
    """Stands in for a run of Weights & Biases."""

    def __init__(self, **arguments):
        self.arguments, self.logged, self.metrics, self.finished = arguments, [], [], False

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    started = []

    def init(**arguments):
        started.append(FakeRun(**arguments))
        return started[-1]

    setup = types.SimpleNamespace(settings=types.SimpleNamespace(project=None))
    wandb = types.SimpleNamespace(init=init, setup=lambda: setup, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return started


def wandb_config():
    config = tiny_config("data")
    config.train.writers = ("wandb",)
    return config


def test_weights_and_biases_gets_every_metric_and_a_resumed_run_continues(runs, tmp_path):
    config = wandb_config()
    for first, step in ((0, 1), (1, 2)):
        writer = MetricWriter(tmp_path, config, first)
        writer.write(step, "train", {"loss": 0.5 / step})
        writer.write(step, "validation", {"top1": 0.25 * step})
        writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2]
    assert [run.logged for run in runs] == [
        [{"step": 1, "train/loss": 0.5}, {"step": 1, "validation/top1": 0.25}],
        [{"step": 2, "train/loss": 0.25}, {"step": 2, "validation/top1": 0.5}],
    ]
    assert all(run.finished and run.metrics == [("*", "step")] for run in runs)
    assert runs[0].arguments["id"] == runs[1].arguments["id"]
    assert runs[0].arguments["config"]["seed"] == config.seed
    assert not (tmp_path / "tensorboard").exists()


def test_a_metric_that_is_no_number_leaves_valid_json(tmp_path):
    config = tiny_config("data")
    config.train.writers = ()
    writer = MetricWriter(tmp_path, config, 0)
    writer.write(1, "train", {"loss": 0.5, "gradient_norm": math.inf})
    writer.close()
    lines = (tmp_path / JSONL_FILE).read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["gradient_norm"] for line in lines] == [None]
    (steps, values) = read_curves(tmp_path / JSONL_FILE)["train gradient_norm"]
    assert (steps, math.isnan(values[0])) == ([1], True)


def test_a_package_that_is_not_installed_is_named_before_anything_is_written(tmp_path, monkeypatch, small_demo):
    config = wandb_config()
    config.data.data_dir = str(small_demo)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"config.train.writers has 'wandb', .* pip install wandb"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_writers_are_named():
    assert set(config_rules.WRITERS) == set(writers.WRITERS)
    config = tiny_config("data")
    config.train.writers = ("mlflow",)
    with pytest.raises(ValueError, match=r"config.train.writers=\('mlflow',\): expected a tuple of tensorboard, wandb"):
        check_config(config)
