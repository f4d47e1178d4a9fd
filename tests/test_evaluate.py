"""Evaluation: every clip once, in the order of the split, on any number of processes; views averaged."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from rgbd_jax import metrics
from rgbd_jax.data import loader
from rgbd_jax.data.source import open_split
from rgbd_jax.evaluation import Evaluator
from rgbd_jax.model import UNIMODAL, Model, evaluation_schedule, schedule_at
from rgbd_jax.parallel.mesh import make_mesh, replicated, shard
from rgbd_jax.scores import Scores
from rgbd_jax.step import Steps, new_state
from tests.conftest import ROOT
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def setup(small_demo):
    """An untrained model, its state and schedule values."""
    config = tiny_config(small_demo)
    config.eval.batch_size = 10  # the last batch of the 24 clips is not full
    model = Model(config, 12)
    return model, shard(new_state(model, *model.init(3)), replicated(make_mesh(1))), schedule_at(config, 1.0)


def evaluated(model, state, schedule, split="validation"):
    """Metrics and scores of the model on a split."""
    clips = open_split("rgbd_demo", model.config.data.data_dir, split)
    return Evaluator(Steps(model), clips)(state, schedule)


def assert_same_logits(found, expected):
    """Logits differ by much less than from clip to clip, so that clips in another order would show.

    Some clips of the demo look alike in RGB, hence most clips and not all.
    """
    assert found.keys() == expected.keys()
    for head, logits in expected.items():
        spread = logits.std(axis=0).max()
        assert np.abs(found[head] - logits).max() < 0.05 * spread
        assert np.median(np.abs(np.roll(logits, 1, axis=0) - logits).max(axis=1)) > 0.1 * spread


def test_scores_are_those_of_the_clips_in_the_order_of_the_split(setup):
    model, state, schedule = setup
    config = model.config
    split = open_split("rgbd_demo", config.data.data_dir, "validation")
    found, scores = evaluated(model, state, schedule)
    clips = [split[i] for i in range(len(split))]
    assert scores.names == tuple(clip.name for clip in clips)
    assert scores.labels.tolist() == [clip.label for clip in clips]
    assert (scores.modality, scores.dataset, scores.split, scores.step) == ("rgb", "rgbd_demo", "validation", 0)
    assert scores.class_names == split.class_names
    assert found["clips"] == len(clips) == 24
    again = metrics.measure(UNIMODAL, scores.heads, scores.labels, {})
    assert again == {name: found[name] for name in again}
    assert {"loss", "cross_entropy", "distillation", "top1_small", "top1_medium", "top1_large"} <= found.keys()
    # The same clips all in one batch.
    with config.unlocked():
        other = config.copy_and_resolve_references()
    other.eval.batch_size = 24
    alone, scores_alone = evaluated(Model(other, 12), state, schedule)
    assert scores_alone.names == scores.names
    assert_same_logits(scores_alone.heads, scores.heads)
    batch = next(iter(loader.eval_batches(split, config, batch_size=5)))
    output, _ = jax.jit(model.apply)(state.params, state.batch_stats, model.inputs(batch), schedule)
    first = {head: logits[:5] for head, logits in scores.heads.items()}
    assert_same_logits(jax.device_get(dict(output.heads)), first)
    assert alone["loss"] == pytest.approx(found["loss"], rel=1e-5)


PROCESS = """
import json, sys
from pathlib import Path
import jax
from absl import flags
from rgbd_jax.data.source import open_split
from rgbd_jax.evaluation import Evaluator
from rgbd_jax.model import Model, schedule_at
from rgbd_jax.parallel.mesh import shard
from rgbd_jax.step import Steps, new_state
from tests.tiny import tiny_config

flags.FLAGS(["test"])
data_dir, results, address, number = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
assert jax.device_count() == 4 and jax.local_device_count() == 2
config = tiny_config(data_dir)
config.eval.batch_size, config.sharding.parameter_shards = 20, 2
model = Model(config, 12)
steps = Steps(model)
state = shard(new_state(model, *model.init(3)), steps.sharding)
assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
split = open_split("rgbd_demo", data_dir, "validation")
measured, scores = Evaluator(steps, split)(state, schedule_at(config, 1.0))
scores.save(Path(f"{results}.npz"))
Path(f"{results}.json").write_text(json.dumps(measured))
"""


def test_two_processes_of_two_devices_give_the_results_of_one(setup, small_demo, tmp_path):
    """Clips are split over all four devices, parameters over the two of each process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    results = [tmp_path / "0", tmp_path / "1"]
    commands = [[sys.executable, "-c", PROCESS, small_demo, path, address, path.name] for path in results]
    processes = [subprocess.Popen(command, env=environment, cwd=ROOT) for command in commands]
    try:
        assert [process.wait(timeout=400) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected, scores = evaluated(*setup)
    for path in results:
        found, measured = Scores.load(path.with_suffix(".npz")), json.loads(path.with_suffix(".json").read_text())
        assert (found.names, found.labels.tolist()) == (scores.names, scores.labels.tolist())
        assert_same_logits(found.heads, scores.heads)
        assert (measured.keys(), measured["clips"]) == (expected.keys(), 24)
        assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_scores_of_views_are_averaged_as_probabilities():
    logits = np.random.default_rng(0).normal(0, 4, (6, 5, 12)).astype(np.float32)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    averaged = metrics.average_views(logits)
    np.testing.assert_allclose(np.exp(averaged), probabilities.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(metrics.average_views(logits[:1]), logits[0])
    assert np.isfinite(metrics.average_views(1e30 * logits)).any()


def test_the_evaluator_scores_a_clip_by_the_mean_over_its_views(small_demo, monkeypatch):
    config = tiny_config(small_demo)
    config.eval.clips, config.eval.crops = 2, 3
    model = Model(config, 12)
    state = new_state(model, *model.init(0))
    evaluator = Evaluator(Steps(model), open_split("rgbd_demo", small_demo, "validation"))
    all_views = loader.views

    def probabilities():
        measured, scores = evaluator(state, evaluation_schedule(config, 1))
        assert (measured["clips"], measured["views"]) == (24, 6)
        return {name: np.asarray(jax.nn.softmax(logits)) for name, logits in scores.heads.items()}, measured["loss"]

    averaged, loss = probabilities()
    alone = []
    for view in range(6):
        monkeypatch.setattr(loader, "views", lambda batch, view=view: all_views(batch)[view : view + 1])
        alone.append(probabilities())
    assert loss == pytest.approx(np.mean([each for _, each in alone]), rel=1e-5)
    for name, found in averaged.items():
        views = np.stack([heads[name] for heads, _ in alone])
        np.testing.assert_allclose(found, views.mean(axis=0), rtol=1e-4, atol=1e-6)
        assert views.std(axis=0).max() > 1e-6  # the views differ, or the mean over them would show nothing
