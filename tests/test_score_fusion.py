"""Late fusion: weights that are known, every refusal, and the command."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools import fuse as tool
from rgbd_jax.tools.fuse import fuse, search_weights
from tests.tiny import run_command

CLASSES = 4


def write(workdir, scores):
    scores.save(scores_file(workdir, scores.split))


def read(workdir, split="test"):
    return Scores.load(scores_file(workdir, split))


def change(workdir, split="test", **changed):
    write(workdir, dataclasses.replace(read(workdir, split), **changed))


def rows_of(scores, rows, **changed):
    """The scores of some clips."""
    names, heads = tuple(scores.names[i] for i in rows), {name: x[rows] for name, x in scores.heads.items()}
    return dataclasses.replace(scores, names=names, labels=scores.labels[rows], heads=heads, **changed)


def noisy(seed, labels, sharpness):
    """Logits that favour the label by `sharpness`, over noise."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), CLASSES))
    logits[np.arange(len(labels)), labels] += sharpness
    return logits


@pytest.fixture
def two_runs(tmp_path):
    """Workdirs of a better and a worse run, each with scores of two splits of 60 clips."""
    workdirs, classes = [tmp_path / "rgb", tmp_path / "depth"], ("wave", "point", "circle", "stop")
    for split, seed in (("test", 10), ("validation", 20)):
        labels = np.random.default_rng(seed).integers(0, CLASSES, 60)
        names = tuple(f"{split}_{i}" for i in range(60))
        for number, workdir in enumerate(workdirs):
            heads = {"logits": noisy(seed + number, labels, 2.0 - number).astype(np.float32)}
            write(workdir, Scores(names, labels, heads, "rgb", "rgbd_folder", split, 100, classes))
    return workdirs


def plain_probabilities(row):
    powers = [math.exp(float(x)) for x in row]
    return [power / sum(powers) for power in powers]


def probabilities_of(*runs):
    return np.array([[plain_probabilities(row) for row in logits] for logits in runs])


def plain_top1(runs, weights, labels):
    """Accuracy of the weighted sum of probabilities, clip by clip and class by class."""
    hits = 0
    for rows, label in zip(zip(*probabilities_of(*runs).tolist(), strict=True), labels, strict=True):
        summed = [sum(w * p for w, p in zip(weights, of_class, strict=True)) for of_class in zip(*rows, strict=True)]
        hits += summed.index(max(summed)) == label
    return hits / len(labels)


def test_given_weights_equal_a_plain_computation(two_runs):
    logits, labels = [read(workdir).heads["logits"] for workdir in two_runs], read(two_runs[0]).labels.tolist()
    for weights in (None, (1, 3), (0.9, 0.1), (0, 2)):
        result, plain = fuse(two_runs, "test", weights=weights), weights or (1, 1)
        assert result["weights"] == pytest.approx([w / sum(plain) for w in plain])
        assert result["top1"] == plain_top1(logits, plain, labels)
        assert [run["top1"] for run in result["runs"]] == [plain_top1([one], [1], labels) for one in logits]
        assert (result["clips"], result["tune_split"]) == (60, None)


def test_order_of_the_clips_does_not_matter(two_runs):
    expected = fuse(two_runs, "test")
    write(two_runs[1], rows_of(read(two_runs[1]), np.random.default_rng(0).permutation(60)))
    assert fuse(two_runs, "test") == expected


def test_weights_that_are_known():
    labels = np.arange(40) % CLASSES
    good, bad = np.zeros((2, 40, CLASSES))
    good[np.arange(40), labels] = 0.2  # right, with little confidence
    bad[np.arange(40), (labels + 1) % CLASSES] = 5.0  # wrong, with much
    for runs in ((good, bad), (bad, good), (bad, good, bad)):
        assert search_weights(probabilities_of(*runs), labels) == tuple(float(run is good) for run in runs)
    # Each run knows half of the clips: all positive weights recognise all; equal ones have the lowest cross entropy.
    one, other = np.zeros((2, 40, CLASSES))
    one[np.arange(20), labels[:20]] = 3.0
    other[np.arange(20, 40), labels[20:]] = 3.0
    assert search_weights(probabilities_of(one, other), labels) == (0.5, 0.5)
    for runs in (2, 3, 5, 12):
        same = probabilities_of(*[noisy(0, labels, 1.0)] * runs)
        assert search_weights(same, labels) == (1 / runs,) * runs


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_no_weights_of_a_plain_search_are_better(seed, runs):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, 12)
    logits = [noisy([seed, run], labels, 0.7) for run in range(runs)]
    weights = search_weights(probabilities_of(*logits), labels)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    others = [w for w in itertools.product(range(6), repeat=runs) if sum(w) == 5]
    best = max(plain_top1(logits, other, labels) for other in [*others, (1,) * runs])
    assert plain_top1(logits, weights, labels) >= best


def test_weights_are_found_on_the_tuning_split_alone(two_runs):
    result = fuse(two_runs, "test", tune_split="validation")
    tuning = [read(workdir, "validation") for workdir in two_runs]
    logits, labels = [run.heads["logits"] for run in tuning], tuning[0].labels.tolist()
    assert result["tune_top1"] == plain_top1(logits, result["weights"], labels)
    assert result["tune_top1"] >= max(plain_top1(logits, (w, 10 - w), labels) for w in range(11))
    for workdir in two_runs:  # other labels of the reported clips do not change the weights
        change(workdir, labels=(read(workdir).labels + 1) % CLASSES)
    changed = fuse(two_runs, "test", tune_split="validation")
    assert changed["weights"] == result["weights"]
    assert changed["top1"] < result["top1"]


def test_runs_that_do_not_fit_together(two_runs):
    one, other = two_runs
    scores = read(other)
    names, labels, logits = scores.names, scores.labels.copy(), scores.heads["logits"]
    labels[7] = (labels[7] + 1) % CLASSES
    other_clips = "they are not of the same clips: the first alone has "
    for message, changed in (
        (rf"{other_clips}clip test_59, and the second alone has clip new", {"names": (*names[:-1], "new")}),
        (rf"{other_clips}58 clips \(test_10, test_11, test_12, \.\.\.\)$", vars(rows_of(scores, np.arange(2)))),
        (rf"they disagree on the labels of clip test_7 \({scores.labels[7]} and {labels[7]}\)", {"labels": labels}),
        ("class 1 is 'point' in one and 'aim' in the other", {"class_names": ("wave", "aim", "circle", "stop")}),
        ("one has 4 classes, the other 5", {"heads": {"logits": np.pad(logits, ((0, 0), (0, 1)))}}),
    ):
        write(other, dataclasses.replace(scores, **changed))
        files = f"{scores_file(one, 'test')} and {scores_file(other, 'test')} cannot be fused: "
        with pytest.raises(ValueError, match=files + message):
            fuse(two_runs, "test")
    logits[3, 1] = np.nan  # a run that diverged
    write(other, scores)
    with pytest.raises(ValueError, match=rf"{scores_file(other, 'test')}: the logits of clip test_3 are not finite"):
        fuse(two_runs, "test")
    logits[3, 1] = 0
    write(other, dataclasses.replace(scores, class_names=()))
    assert fuse(two_runs, "test")["clips"] == 60


def test_tuning_on_reported_clips_is_refused(two_runs):
    clips = {
        "test": "60 clips",
        "test[:10%]": r"6 clips \(test_0, test_1, test_2, \.\.\.\)",
        "validation+test[50%:]": "30",
    }
    for workdir in two_runs:
        scores = read(workdir)
        write(workdir, rows_of(scores, np.arange(6), split="test[:10%]"))
        write(workdir, rows_of(scores, np.arange(30, 60), split="validation+test[50%:]"))
    for split, shared in clips.items():
        with pytest.raises(ValueError, match=f"share clips: {shared}"):
            fuse(two_runs, "test", tune_split=split)
    for workdir in two_runs:  # names that recur in another split are other clips
        change(workdir, "validation", names=read(workdir).names)
    assert fuse(two_runs, "test", tune_split="validation")["tune_clips"] == 60
    change(two_runs[1], "validation", step=200)
    with pytest.raises(ValueError, match=r"validation\.npz is of step 200, but the reported .* of step 100"):
        fuse(two_runs, "test", tune_split="validation")


def test_arguments_that_cannot_be_used(two_runs, tmp_path):
    for weights in ((1,), (1, -1), (0, 0), (1, math.nan), (1, math.inf)):
        with pytest.raises(ValueError, match="expected 2 numbers >= 0"):
            fuse(two_runs, "test", weights=weights)
    with pytest.raises(ValueError, match="two or more"):
        fuse(two_runs[:1], "test")
    with pytest.raises(ValueError, match="given twice"):
        fuse([*two_runs, two_runs[0]], "test")
    with pytest.raises(FileNotFoundError, match=r"absent/scores/test\.npz does not exist.*--config\.data\.eval_split"):
        fuse([two_runs[0], tmp_path / "absent"], "test")
    scores_file(two_runs[0], "test").replace(scores_file(two_runs[0], "validation"))
    with pytest.raises(ValueError, match=r"validation\.npz holds the scores of split 'test'"):
        fuse(two_runs, "validation")


def test_command(two_runs, capsys):
    run_command(tool, *two_runs, "--split", "test", "--tune_split", "validation")
    *lines, last = capsys.readouterr().out.splitlines()
    expected = fuse(two_runs, "test", tune_split="validation")
    assert json.loads(last) == {"mode": "fuse", **expected}
    assert [line.split()[-1] for line in lines] == ["clips", "60", "60", "60"]
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split()[:3] == ["fused", "1.0000", f"{expected['top1']:.2%}"]
    run_command(tool, *two_runs, "--split=test", "--weights=1,3")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["weights"] == [0.25, 0.75]
    with pytest.raises(ValueError, match="--weights=1,x: expected numbers"):
        run_command(tool, *two_runs, "--weights=1,x")
    with pytest.raises(SystemExit):
        run_command(tool, *two_runs, "--weights=1,1", "--tune_split=validation")
