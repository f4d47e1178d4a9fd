"""Several views of a clip in evaluation: how their scores become one."""

import jax
import numpy as np
import pytest

from rgbd_jax import metrics
from rgbd_jax.data import loader
from rgbd_jax.data.source import open_split
from rgbd_jax.evaluate import Evaluator
from rgbd_jax.parallel.mesh import make_mesh
from rgbd_jax.step import Stream, evaluation_schedule
from tests.tiny import tiny_config


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
    stream = Stream(config, 12)
    state = stream.init(0)
    evaluator = Evaluator(stream, open_split("rgbd_demo", small_demo, "validation"), make_mesh(1))
    all_views = loader.views

    def probabilities():
        result, scores = evaluator.measure(state, evaluation_schedule(config, 1))
        assert (result["clips"], result["views"]) == (24, 6)
        return {name: np.asarray(jax.nn.softmax(logits)) for name, logits in scores.heads.items()}, result["loss"]

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
