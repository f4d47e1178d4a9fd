"""Two streams and their fusion trained in turn, as a user does it, and the five accuracies of the fusion."""

import json

import numpy as np
import pytest

from rgbd_jax.evaluate import evaluate
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.train import train
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fused(small_demo, tmp_path_factory):
    """A finished fusion run that started from two streams: config, workdir, result."""
    root = tmp_path_factory.mktemp("fusion")
    for stream in ("rgb", "depth"):
        config = tiny_config(small_demo, stream)
        config.train.epochs = 1
        train(config, root / stream)
    config = tiny_config(small_demo, "fusion")
    config.fusion.update(init_rgb_from=str(root / "rgb"), init_depth_from=str(root / "depth"))
    return config, root / "fusion", train(config, root / "fusion")


def test_losses_and_accuracies_are_logged(fused):
    _, workdir, result = fused
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "cross_entropy", "modality", "reconstruction", "distillation"):
        assert all(np.isfinite(line[name]) for line in lines), name
    assert all(0 <= result[name] <= 1 for name in ("top5", "mean_per_class"))


def test_the_card_tells_both_sources_and_all_five_accuracies(fused):
    config, workdir, result = fused
    card = (workdir / "MODEL_CARD.md").read_text()
    for modality in ("rgb", "depth"):
        assert f"`{config.fusion[f'init_{modality}_from']}`: the " in card
        assert f"`config.fusion.init_{modality}_from`" in card
    for name, key in (("rgb alone", "rgb"), ("RGB + depth", "rgb_depth"), ("RGB + depth + fused", "all")):
        assert f"| top-1 of {name} | {result[f'top1_{key}']:.2%} |" in card


def test_five_accuracies_follow_from_the_scores_of_every_clip(fused):
    config, workdir, result = fused
    measured = evaluate(config, workdir, "best")
    scores = Scores.load(scores_file(workdir, "validation"))
    assert result["clips"] == len(set(scores.names)) == 24
    fused_logits, rgb, depth = (scores.heads[name].astype(np.float64) for name in ("logits", "rgb", "depth"))
    sums = {"top1": fused_logits, "top1_rgb": rgb, "top1_depth": depth}
    sums |= {"top1_rgb_depth": rgb + depth, "top1_all": rgb + depth + fused_logits}
    for name, logits in sums.items():
        right = sum(int(np.argmax(row) == label) for row, label in zip(logits, scores.labels, strict=True))
        assert measured[name] == result[name] == pytest.approx(right / 24), name
    assert measured["reference_protocol"] == max(measured[x] for x in ("top1", "top1_rgb_depth", "top1_all"))


def test_finished_run_goes_on_when_its_sources_are_gone(fused, tmp_path):
    config, workdir, result = fused
    with config.unlocked():
        moved = config.copy_and_resolve_references()
    moved.fusion.init_rgb_from = moved.fusion.init_depth_from = str(tmp_path / "gone")
    again = train(moved, workdir)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
