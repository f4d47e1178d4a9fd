"""The numbers of the report against plain computations clip by clip."""

import itertools
import json
import math

import numpy as np
import pytest

from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools.fuse import load_runs
from rgbd_jax.tools.report import summary
from rgbd_jax.tools.report.source import read_curves, read_source
from rgbd_jax.tools.report.summary import Predictions
from tests.report.made_scores import made_scores

CLASSES, CLIPS = 6, 140


@pytest.fixture(scope="module")
def predictions():
    """140 clips; class 4 has no clips, class 5 is never predicted and has no name."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 5], CLIPS)
    logits = rng.normal(size=(CLIPS, CLASSES)).astype(np.float32)
    logits[np.arange(CLIPS), labels] += 1.5
    logits[:, 5] = -9
    return Predictions(logits, labels, ("a", "b", "c", "d", "e"))


def test_confusion_accuracy_and_precision_equal_counting(predictions):
    pairs = list(zip(predictions.labels.tolist(), predictions.predicted.tolist(), strict=True))
    for true, predicted in itertools.product(range(CLASSES), repeat=2):
        assert predictions.confusion[true, predicted] == pairs.count((true, predicted))
    for label in range(CLASSES):
        correct = pairs.count((label, label))
        clips, predicted = (sum(pair[axis] == label for pair in pairs) for axis in (0, 1))
        for value, total in ((predictions.accuracy[label], clips), (predictions.precision[label], predicted)):
            assert math.isnan(value) if not total else value == correct / total
    assert predictions.class_names.tolist() == ["a", "b", "c", "d", "e", "class 5"]
    order = predictions.worst_classes().tolist()
    assert order[-1] == 4  # no clips
    assert predictions.accuracy[order[:-1]].tolist() == sorted(predictions.accuracy[order[:-1]])
    confused = predictions.confused_pairs()
    assert sum(clips for _, _, clips, _ in confused) == int((~predictions.correct).sum())
    assert [clips for _, _, clips, _ in confused] == sorted((pair[2] for pair in confused), reverse=True)
    for true, predicted, clips, reverse in confused:
        assert (clips, reverse) == (pairs.count((true, predicted)), pairs.count((predicted, true)))


def test_calibration_and_confidence_interval(predictions):
    error = 0.0
    counts, correct, _ = predictions.calibration()
    for number in range(summary.BINS):
        inside = [i for i in range(CLIPS) if number <= summary.BINS * predictions.confidence[i] < number + 1]
        hits = int(predictions.correct[inside].sum())
        assert (counts[number], correct[number]) == (len(inside), hits)
        if inside:
            error += len(inside) / CLIPS * abs(predictions.confidence[inside].mean() - hits / len(inside))
    assert predictions.calibration_error() == pytest.approx(error)
    # The ends of the interval are the accuracies p whose distance from the measured one is 1.96 standard deviations.
    for hits, clips in ((90, 100), (0, 7), (12, 12)):
        labels = (np.arange(clips) >= hits).astype(int)
        for p in Predictions(np.tile([1.0, 0.0], (clips, 1)), labels, ()).interval():
            assert abs(hits / clips - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / clips), abs=1e-7)


def test_heads_beside_the_final_prediction():
    scores = made_scores(200, 12)
    heads, labels = scores.heads, scores.labels
    predictions = Predictions(heads["logits"], labels, scores.class_names)
    rows = summary.head_rows(heads, predictions)
    assert [row[0] for row in rows] == ["final prediction", "small branch", "medium branch", "large branch"]
    correct = {name: (logits.argmax(1) == labels) for name, logits in heads.items()}
    for name, (_, top1, better, worse) in zip(heads, rows, strict=True):
        assert top1 == pytest.approx(correct[name].mean())
        assert better == sum(correct[name] & ~correct["logits"])
        assert worse == sum(correct["logits"] & ~correct[name])
    same = heads["small"].argmax(1) == heads["large"].argmax(1)
    assert summary.agreement(heads)[1, 3] == summary.agreement(heads)[3, 1] == pytest.approx(same.mean())
    fused = {"logits": heads["logits"], "rgb": heads["small"], "depth": heads["large"]}
    rows = summary.head_rows(fused, predictions)
    assert [row[0] for row in rows][3:] == ["RGB + depth", "RGB + depth + final prediction"]
    assert rows[3][1] == pytest.approx(((fused["rgb"] + fused["depth"]).argmax(1) == labels).mean())


def test_cka_equals_its_definition_by_kernels():
    one, other = (made_scores(200, 12).heads[name].astype(np.float64) for name in ("small", "large"))
    centre = np.eye(200) - 1 / 200
    k, m = centre @ one @ one.T @ centre, centre @ other @ other.T @ centre
    expected = (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))
    heads = {"logits": one, "small": other, "medium": 3 * one @ rotation + 7, "large": np.ones_like(one)}
    similarity = summary.cka(heads)
    assert [similarity[0, 1], similarity[1, 0]] == pytest.approx([expected] * 2, rel=1e-9)
    assert similarity[0, 2] == pytest.approx(1, rel=1e-9)
    assert math.isnan(similarity[0, 3])


def test_comparison_counts_clip_by_clip(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        made_scores(300, 12, seed=seed).save(scores_file(tmp_path / name, "validation"))
    runs = load_runs([tmp_path / "a", tmp_path / "b"], "validation")
    one, two, fused = summary.compare(runs)
    for row, logits in zip((one, two), runs.logits, strict=True):
        assert row.correct.tolist() == (logits.argmax(1) == runs.labels).tolist()
    hits = list(zip(one.correct.tolist(), two.correct.tolist(), strict=True))
    patterns = {"all runs": (True, True), "only a": (True, False), "only b": (False, True), "none": (False, False)}
    assert dict(summary.correct_patterns([one, two])) == {name: hits.count(both) for name, both in patterns.items()}
    powers = np.exp(runs.logits)
    mean = (powers / powers.sum(-1, keepdims=True)).sum(0).argmax(1)
    assert fused.metrics["top1"] == pytest.approx((mean == runs.labels).mean())


def test_findings_name_the_confused_pair(tmp_path):
    labels = np.repeat([0, 1, 2, 3], 20)
    predicted = np.concatenate([[0] * 18 + [1] * 2, [0] * 6 + [1] * 14, [2] * 20, [1] + [3] * 19])
    heads, names = {"logits": np.eye(4, dtype=np.float32)[predicted]}, ("wave", "point", "circle", "stop")
    scores = Scores(tuple(map(str, range(80))), labels, heads, "rgb", "d", "validation", 1, names)
    scores.save(scores_file(tmp_path, "validation"))
    source = read_source(tmp_path)
    texts = [text for _, text in summary.findings(source, summary.compare(source.runs))]
    assert "8 of 9 errors confuse “point” and “wave” (89%)." in texts
    assert "“point” has the lowest accuracy: 14 of 20 clips (70.0%)." in texts


def test_curves_are_read_and_damaged_lines_are_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": 2, "kind": "train", "loss": 3.5, "lr": 0.1}, {"step": 4, "kind": "train", "loss": 2.5}]
    lines.append({"step": 4, "kind": "validation", "top1": 0.5})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "kind": "tra')
    curves = {"train loss": ([2, 4], [3.5, 2.5]), "train lr": ([2], [0.1]), "validation top1": ([4], [0.5])}
    assert read_curves(file) == curves
    for line in ("nonsense", "[1]", '{"step": 3}', '{"step": "x", "kind": "train", "loss": 1}'):
        file.write_text(json.dumps(lines[0]) + f"\n{line}\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of metrics"):
            read_curves(file)
