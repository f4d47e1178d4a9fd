"""What the page computes, against plain computations clip by clip."""

import itertools
import math

import numpy as np
import pytest

from rgbd_jax.scores import scores_file
from rgbd_jax.tools.fuse import load_runs
from rgbd_jax.tools.report.classes import class_figures, confusion, most_confused, orders
from rgbd_jax.tools.report.comparison import class_accuracies, compare
from rgbd_jax.tools.report.confidence import (
    Answers,
    calibration_error,
    confident_errors,
    histogram,
    right_beside,
    wilson_interval,
)
from rgbd_jax.tools.report.curves import Series, read_curves, steps_per_epoch, temperatures
from rgbd_jax.tools.report.findings import class_findings
from rgbd_jax.tools.report.heads import agreement, head_figures, linear_cka, similarity
from rgbd_jax.tools.report.settings_table import settings_table
from tests.report.made_scores import made_scores
from tests.tiny import tiny_config

CLASSES = 6


@pytest.fixture(scope="module")
def answers():
    """140 answers; class 4 has no clips and class 5 is never said."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 5], 140)
    logits = rng.normal(size=(140, CLASSES))
    logits[np.arange(140), labels] += 1.5
    logits[:, 5] = -9
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Answers(labels, logits.argmax(1), probabilities)


def test_confusion_and_class_figures_equal_counting(answers):
    counts = confusion(answers.predicted, answers.labels, CLASSES)
    pairs = list(zip(answers.labels.tolist(), answers.predicted.tolist(), strict=True))
    for true, predicted in itertools.product(range(CLASSES), repeat=2):
        assert counts[true, predicted] == pairs.count((true, predicted))
    figures = class_figures(counts)
    for label in range(CLASSES):
        of_class = [p for t, p in pairs if t == label]
        said = [t for t, p in pairs if p == label]
        right = of_class.count(label)
        assert (figures.clips[label], figures.predicted[label], figures.right[label]) == (
            len(of_class), len(said), right,
        )  # fmt: skip
        for value, total in ((figures.accuracy[label], len(of_class)), (figures.precision[label], len(said))):
            assert math.isnan(value) if not total else value == right / total
    assert math.isnan(figures.accuracy[4])
    assert math.isnan(figures.precision[5])


def test_orders_and_confused_pairs(answers):
    counts = confusion(answers.predicted, answers.labels, CLASSES)
    found = orders(counts)
    assert found["class"] == list(range(CLASSES))
    accuracy = class_figures(counts).accuracy
    assert found["error"][-1] == 4  # no clips
    assert [accuracy[label] for label in found["error"][:-1]] == sorted(accuracy[label] for label in (0, 1, 2, 3, 5))
    clips = [int((answers.labels == label).sum()) for label in found["clips"]]
    assert clips == sorted(clips, reverse=True)

    pairs = most_confused(counts, 100)
    assert sum(pair.clips for pair in pairs) == int((answers.labels != answers.predicted).sum())
    assert [pair.clips for pair in pairs] == sorted((pair.clips for pair in pairs), reverse=True)
    for pair in pairs:
        assert pair.true != pair.predicted
        assert pair.clips == int(((answers.labels == pair.true) & (answers.predicted == pair.predicted)).sum())
        assert pair.share == pair.clips / int((answers.labels == pair.true).sum())
        assert pair.back == int(((answers.labels == pair.predicted) & (answers.predicted == pair.true)).sum())
    assert most_confused(counts, 3) == pairs[:3]
    assert most_confused(np.diag([3, 4]), 9) == []


def test_errors_and_right_clips_that_are_shown(answers):
    chosen = confident_errors(answers, 5)
    wrong = [i for i in range(140) if answers.predicted[i] != answers.labels[i]]
    by_confidence = sorted(wrong, key=lambda i: -answers.probabilities[i].max())
    assert chosen == by_confidence[:5]
    assert confident_errors(answers, 1000) == by_confidence
    beside = right_beside(answers, chosen, 50)
    assert len(set(beside)) == len(beside) == 50
    assert all(answers.predicted[i] == answers.labels[i] for i in beside)
    wanted = [label for label in dict.fromkeys(answers.labels[i] for i in chosen) if label != 5]  # 5 is never right
    for place, label in zip(beside, wanted, strict=False):
        same = [i for i in range(140) if answers.predicted[i] == answers.labels[i] == label]
        assert place == max(same, key=lambda i: answers.probabilities[i].max())


def test_confidence(answers):
    right, wrong = histogram(answers)
    error = 0.0
    for number in range(10):
        inside = [i for i in range(140) if number <= 10 * answers.probabilities[i].max() < number + 1]
        hits = [i for i in inside if answers.labels[i] == answers.predicted[i]]
        assert (right[number], wrong[number]) == (len(hits), len(inside) - len(hits))
        if inside:
            sure = sum(answers.probabilities[i].max() for i in inside) / len(inside)
            error += len(inside) / 140 * abs(sure - len(hits) / len(inside))
    assert calibration_error(answers) == pytest.approx(error)
    # The ends of the interval are the accuracies p whose distance from the measured one is 1.96 standard deviations.
    for hits, clips in ((90, 100), (0, 7), (12, 12)):
        for p in wilson_interval(hits, clips):
            assert abs(hits / clips - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / clips), abs=1e-9)


@pytest.fixture(scope="module")
def scores():
    return made_scores(200, 12)


def test_heads_beside_the_decision(scores):
    rows = head_figures(scores.heads, scores.labels)
    assert [row.name for row in rows] == ["logits", "small", "medium", "large"]
    decided = scores.heads["logits"].argmax(1)
    for row in rows:
        said = scores.heads[row.name].argmax(1)
        hits = list(zip((said == scores.labels).tolist(), (decided == scores.labels).tolist(), strict=True))
        assert row.top1 == pytest.approx(sum(one for one, _ in hits) / 200)
        assert (row.saves, row.spoils) == (hits.count((True, False)), hits.count((False, True)))
    alike = agreement(scores.heads)
    small, large = scores.heads["small"].argmax(1), scores.heads["large"].argmax(1)
    assert alike[1, 3] == alike[3, 1] == pytest.approx(sum(small == large) / 200)
    assert np.diag(alike).tolist() == [1] * 4


def test_linear_cka_equals_its_definition_by_kernels(scores):
    one, other = (scores.heads[name].astype(np.float64) for name in ("small", "large"))
    centre = np.eye(200) - 1 / 200
    k, m = centre @ one @ one.T @ centre, centre @ other @ other.T @ centre
    expected = (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(one, other) == pytest.approx(expected, rel=1e-9)
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))
    assert linear_cka(one, 3 * one @ turned + 7) == pytest.approx(1, rel=1e-9)
    assert math.isnan(linear_cka(one, np.ones_like(one)))
    assert similarity(scores.heads)[1, 3] == pytest.approx(expected, rel=1e-5)


def test_comparison_counts_clip_by_clip(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        made_scores(300, 12, seed=seed).save(scores_file(tmp_path / name, "validation"))
    runs = load_runs([tmp_path / name for name in "abc"], "validation")
    found = compare(runs, ["a", "b", "c"])
    hits = np.stack([logits.argmax(1) == runs.labels for logits in runs.logits]).T.tolist()
    for number, row in enumerate(found.runs):
        assert row.top1 == pytest.approx(sum(hit[number] for hit in hits) / 300)
        assert row.alone == sum(hit[number] and sum(hit) == 1 for hit in hits)
    assert dict(found.patterns) == {pattern: hits.count(list(pattern)) for pattern in set(map(tuple, hits))}
    assert found.any_right == pytest.approx(sum(any(hit) for hit in hits) / 300)
    powers = np.exp(runs.logits)
    together = (powers / powers.sum(-1, keepdims=True)).sum(0).argmax(1)
    assert found.rows[-1].kind == "sum"
    assert found.rows[-1].top1 == pytest.approx((together == runs.labels).mean())
    by_class = class_accuracies({"a": found.runs[0].right}, runs.labels, 12)["a"]
    for label in range(12):
        of_class = [hit[0] for hit, true in zip(hits, runs.labels, strict=True) if true == label]
        assert by_class[label] == pytest.approx(sum(of_class) / len(of_class))


def test_findings_name_the_pair_that_makes_up_the_errors():
    counts = np.array([[18, 2, 0, 0], [6, 14, 0, 0], [0, 0, 20, 0], [0, 1, 0, 19]])
    said = [finding.text for finding in class_findings(counts, ("wave", "point", "circle", "stop"))]
    assert any("“wave”" in text and "“point”" in text and "8 of 9 errors (89%)" in text for text in said)
    assert any("least is “point”: 14 of 20" in text for text in said)
    assert [finding.text for finding in class_findings(np.diag([2, 3]), ("a", "b"))] == ["Every clip is recognised."]


def test_curves_are_read_and_bad_lines_are_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "kind": "train", "loss": 3.5, "learning_rate": 0.1}\n'
        '{"step": 4, "kind": "train", "loss": 2.5}\n'
        '{"step": 4, "kind": "validation", "top1": 0.5}\n'
        '{"step": 6, "kind": "tra'
    )
    curves = read_curves(file)
    assert curves["train"] == {"loss": Series((2, 4), (3.5, 2.5)), "learning_rate": Series((2,), (0.1,))}
    assert curves["validation"] == {"top1": Series((4,), (0.5,))}
    for line in ("nonsense", "[1]", '{"step": 3}', '{"step": "x", "kind": "train", "loss": 1}'):
        file.write_text('{"step": 2, "kind": "train", "loss": 3.5}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: this is no line of figures"):
            read_curves(file)
    assert steps_per_epoch([{"step": 30, "epoch": 1}, {"step": 60, "epoch": 2}]) == 30
    assert steps_per_epoch([]) is None


def test_temperatures_rise_line_by_line(tmp_path):
    config = tiny_config(tmp_path)
    assert set(temperatures(config, 2.5).values) == {1.0}
    config.loss.sharpness = True
    found = temperatures(config, 40)
    assert found.steps == tuple(range(40))
    for epoch, value in zip(found.steps, found.values, strict=True):
        assert value == pytest.approx(0.04 + 0.03 * min(epoch, 29) / 29)


def test_settings_that_depart_from_the_default(tmp_path):
    found = {setting.name: setting for setting in settings_table(tiny_config(tmp_path))}
    assert (found["clip.frames"].value, found["clip.frames"].default, found["clip.frames"].changed) == ("8", "64", True)
    assert found["model.branch_frames"].value == "2, 4, 6"
    assert not found["optimizer.momentum"].changed
    assert found["optimizer.name"].changed
