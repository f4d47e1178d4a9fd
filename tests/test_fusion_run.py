"""Two streams and their fusion trained in turn, as a user does it, and the accuracies of the fusion."""

import os
import signal

import jax
import numpy as np
import pytest

from rgbd_jax.checkpoint.metric_writers import MetricAccumulator
from rgbd_jax.evaluation import evaluate
from rgbd_jax.parallel.preemption import PreemptedError
from rgbd_jax.pytorch.weights import read_weights
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.training import train
from tests.test_train import before_call
from tests.tiny import saved_state, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["", "umdr_"])
def fused(request, small_demo, tmp_path_factory):
    """A finished fusion run that started from two streams: config, workdir, result."""
    root = tmp_path_factory.mktemp("fusion")
    for stream in ("rgb", "depth"):
        config = tiny_config(small_demo, request.param + stream)
        config.train.epochs = 1
        train(config, root / stream)
    config = tiny_config(small_demo, f"{request.param}fusion")
    config.checkpoint.every_steps = 1
    config.fusion.update(init_rgb_from=str(root / "rgb"), init_depth_from=str(root / "depth"))
    return config, root / "fusion", train(config, root / "fusion")


def test_the_card_tells_both_sources_and_all_accuracies(fused):
    config, workdir, result = fused
    card = (workdir / "MODEL_CARD.md").read_text()
    for modality in ("rgb", "depth"):
        assert f"`{config.fusion[f'init_{modality}_from']}`: the " in card
        assert f"`config.fusion.init_{modality}_from`" in card
    last = ("RGB after the fusion", "fusion_rgb") if config.network == "umdr" else ("RGB + depth + fused", "all")
    for name, key in (("rgb alone", "rgb"), ("RGB + depth", "rgb_depth"), last):
        assert f"| top-1 of {name} | {result[f'top1_{key}']:.2%} |" in card


def test_accuracies_follow_from_the_scores_of_every_clip(fused):
    config, workdir, result = fused
    measured = evaluate(config, workdir, "best")
    scores = Scores.load(scores_file(workdir, "validation"))
    assert result["clips"] == len(set(scores.names)) == 24
    fused_logits, rgb, depth = (scores.heads[name].astype(np.float64) for name in ("logits", "rgb", "depth"))
    sums = {"top1": fused_logits, "top1_rgb": rgb, "top1_depth": depth}
    sums["top1_rgb_depth"] = rgb + depth
    if config.network == "umdr":
        of_fusion = (scores.heads[f"fusion_{name}"].astype(np.float64) for name in ("rgb", "depth"))
        np.testing.assert_allclose(fused_logits, (rgb + depth + sum(of_fusion)) / 4, rtol=1e-5, atol=1e-5)
    else:
        sums["top1_all"] = rgb + depth + fused_logits
    for name, logits in sums.items():
        right = sum(int(np.argmax(row) == label) for row, label in zip(logits, scores.labels, strict=True))
        assert measured[name] == result[name] == pytest.approx(right / 24), name
    assert measured["reference_protocol"] == max(measured[x] for x in sums if x not in ("top1_rgb", "top1_depth"))


def test_resumed_run_ends_with_the_same_bits(fused, tmp_path, monkeypatch):
    config, workdir, _ = fused
    before_call(monkeypatch, MetricAccumulator, "add", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(PreemptedError):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    train(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, saved_state(config, tmp_path / "run"), saved_state(config, workdir))


def test_frozen_networks_are_those_that_were_trained_before(fused):
    """In spite of AdamW's weight decay; what is trained has moved."""
    config, workdir, _ = fused
    trained = read_weights(workdir, "latest").tensors
    for modality in ("rgb", "depth"):
        before = read_weights(config.fusion[f"init_{modality}_from"]).tensors
        same = [
            np.array_equal(trained[f"Modalit_{modality}.{name}"], tensor)
            for name, tensor in before.items()
            if not name.endswith("num_batches_tracked") and f"Modalit_{modality}.{name}" in trained
        ]
        assert len(same) > 200
        assert all(same) == (config.network == "umdr")


def test_finished_run_goes_on_when_its_sources_are_gone(fused, tmp_path):
    config, workdir, result = fused
    with config.unlocked():
        moved = config.copy_and_resolve_references()
    moved.fusion.init_rgb_from = moved.fusion.init_depth_from = str(tmp_path / "gone")
    again = train(moved, workdir)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
