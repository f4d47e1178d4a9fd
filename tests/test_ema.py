"""The moving average of the weights: its rule, and that it is what is evaluated and exported."""

import dataclasses

import jax
import numpy as np
import pytest

from rgbd_jax.checkpoint.checkpoints import list_checkpoints, read_state
from rgbd_jax.config import check_config
from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.evaluation import Evaluator, evaluate
from rgbd_jax.initial_state import matching_weights
from rgbd_jax.model import Model, evaluation_schedule, schedule_at
from rgbd_jax.models.family import Output
from rgbd_jax.pytorch.weights import read_weights
from rgbd_jax.step import Steps
from rgbd_jax.training import train
from tests.tiny import saved_state, tiny_config

DECAY = 0.75


@pytest.fixture(scope="module")
def trained(small_demo, tmp_path_factory):
    """Config, workdir and result of one epoch of three steps, each of which is saved."""
    config = tiny_config(small_demo)
    config.train.update(epochs=1, ema_decay=DECAY)
    config.optimizer.update(name="sgd")
    config.checkpoint.update(every_steps=1, keep_latest=9)
    workdir = tmp_path_factory.mktemp("ema") / "run"
    return config, workdir, train(config, workdir)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_each_step_moves_parameters_and_statistics_of_the_average_towards_the_weights(trained):
    config, workdir, _ = trained
    steps = Steps(Model(config, 12))
    folders = {int(folder.name): folder for folder in reversed(list_checkpoints(workdir))}  # the last step has two
    assert list(folders) == [1, 2, 3]
    average = steps.model.init(config.seed)
    for folder in folders.values():
        state = read_state(folder, steps.shapes, steps.sharding)
        weights = (state.params, state.batch_stats)
        average = jax.tree.map(lambda a, w: DECAY * np.asarray(a) + (1 - DECAY) * np.asarray(w), average, weights)
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
        jax.tree.map(near, state.evaluated, average)
    moved = [not np.allclose(a, w) for a, w in zip(*map(jax.tree.leaves, (average, weights)), strict=True)]
    assert np.mean(moved) > 0.5


def test_evaluation_prediction_and_conversion_use_the_average(trained):
    config, workdir, result = trained
    state, steps = saved_state(config, workdir), Steps(Model(config, 12))
    assert evaluate(config, workdir, "best")["loss"] == pytest.approx(result["loss"], rel=1e-6)
    alone = dataclasses.replace(state, params=state.ema_params, batch_stats=state.ema_batch_stats)
    evaluator = Evaluator(steps, open_splits(config).evaluation)
    schedule = evaluation_schedule(config, 0)
    losses = []
    for weights in (alone, state):
        metrics, _ = evaluator(dataclasses.replace(weights, ema_params=None, ema_batch_stats=None), schedule)
        losses.append(metrics["loss"])
    assert losses[0] == pytest.approx(result["loss"], rel=1e-6)
    assert losses[1] != pytest.approx(result["loss"], rel=1e-4)
    weights = read_weights(workdir)
    assert_same(matching_weights(steps.model, weights), jax.device_get(state.evaluated))
    assert not weights.momentum
    assert weights.left_out == ("optimizer state: of the weights before averaging (config.train.ema_decay)",)


@pytest.fixture
def co_training(small_demo):
    """Of a network of depth by its average, which predicts RGB."""
    config = tiny_config(small_demo, "umdr_depth")
    config.loss.teacher = 0.2
    with pytest.raises(ValueError, match=r"config.loss.teacher=0.2: expected 0, or one modality with config.train.ema"):
        check_config(config)
    config.train.update(ema_decay=DECAY, epochs=1)
    check_config(config)
    return config


def test_a_teacher_labels_the_other_modality(co_training, monkeypatch):
    clips, model = open_splits(co_training).training, Model(co_training, 12)
    batch = next(loader.train_batches(clips, co_training, batch_size=2))
    assert batch["frames"].keys() == {"rgb", "depth"}
    assert next(iter(loader.eval_batches(clips, co_training, batch_size=2)))["frames"].keys() == {"depth"}
    inputs, averages, schedule = model.inputs(batch), ("parameters", "statistics"), schedule_at(co_training, 0.0)

    def apply(*arguments):
        *given, seen, at = arguments
        assert (tuple(given), at) == (averages, schedule)
        np.testing.assert_array_equal(seen["depth"].clip, inputs["rgb"].clip)
        return Output({"logits": np.eye(12, dtype=np.float32)[[3, 7]]}, {}, {}), None

    monkeypatch.setattr(model, "apply", apply)
    output = Output({"logits": 2 * np.eye(12, dtype=np.float32)[[3, 4]]}, {}, {})
    found = model.teacher_loss(averages, inputs, output, schedule)
    np.testing.assert_allclose(found, [np.log(11 + np.exp(2)) - 2, np.log(11 + np.exp(2))], rtol=1e-6)
