"""The page of a run, from its workdir to the file: what it shows, what it leaves out, and what it refuses."""

import dataclasses
import json
import re

import numpy as np
import pytest

from rgbd_jax.checkpoint.provenance import provenance
from rgbd_jax.checkpoint.workdir import write_config
from rgbd_jax.data.source import open_splits
from rgbd_jax.evaluation import evaluate
from rgbd_jax.inference import drawing
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.metrics import softmax
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools import report
from rgbd_jax.tools.report.page import render
from rgbd_jax.tools.report.source import ClipsMissingError, explain, read_source
from tests.report.made_scores import made_scores
from tests.tiny import run_command, save_run, tiny_config

METRICS = {"loss": 2.5, "cross_entropy": 2.4, "top1": 0.1, "top5": 0.4}
TRAINING_CHARTS = ["loss", "accuracy", "learning_rate", "gradient_norm"]
SCORE_CHARTS = ["confusion", "scatter", "classes", "reliability", "confidence", "agreement", "cka"]


def charts(page):
    return re.findall(r'<div id="chart-([^"]+)" class="plotly-graph-div"', page)


@pytest.fixture(scope="module")
def run(small_demo, tmp_path_factory):
    """The workdir of a tiny network as it is initialised, saved as if an epoch of 3 steps had passed, and evaluated."""
    config = tiny_config(small_demo)
    splits = open_splits(config)
    produced_by = provenance(config, splits.training, splits.evaluation)
    workdir = save_run(config, tmp_path_factory.mktemp("runs") / "tiny_rgb", provenance=produced_by, **METRICS)
    more = {"learning_rate": 0.1, "gradient_norm": 2.0}
    lines = [{"step": step, "kind": "train", **more, **METRICS} for step in (1, 2, 3)]
    lines.append({"step": 3, "kind": "validation", **METRICS})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(config, workdir, "best")
    return workdir


def test_page_of_a_run(run):
    page = render(read_source(run), errors=3, correct=1)
    scores = Scores.load(scores_file(run, "validation"))
    correct = int((scores.heads["logits"].argmax(1) == scores.labels).sum())
    produced_by = json.loads((run / "checkpoints" / "3" / "metadata" / "metadata").read_text())["provenance"]
    for text in (
        f"{correct} of 24 clips",
        "validation (24 clips, 12 classes)",
        "best, after epoch 1 of 2",
        "trained on train, evaluated on validation, 1 view of each clip",
        produced_by["started"],
        f"jax {produced_by['versions']['jax']}",
        '<tr class="changed"><td>clip.frames</td><td>8</td><td class="soft">64</td></tr>',
        "<tr><td>optimizer.momentum</td><td>0.9</td>",
        "<td>model.branch_frames</td><td>2, 4, 6</td>",
    ):
        assert text in page
    assert charts(page) == [*TRAINING_CHARTS, *SCORE_CHARTS[:5], "weights-rgb", "attention-rgb", *SCORE_CHARTS[5:]]
    assert page.count('<article class="clip incorrect">') == 3
    assert page.count('<article class="clip correct">') == 1
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(.)', without_scripts)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', without_scripts)


def test_explanations_are_of_the_scored_clips(run, small_demo):
    source, indices = read_source(run), [5, 17]
    explanations = explain(source, indices)
    trained, split = load_trained(run), open_splits(tiny_config(small_demo)).evaluation
    attention = trained.model.family.attention("rgb")
    names = ("recoupling_weights", *attention.values())
    outputs = Predictor(trained, batch_size=2, intermediates=names)(explanations.frames).intermediates
    assert [split[index].name for index in indices] == [source.scores.names[index] for index in indices]
    expected = softmax(source.scores.heads["logits"][indices].astype(np.float64))
    np.testing.assert_allclose(explanations.prediction.probabilities, expected, rtol=1e-4)
    weights, expected = explanations.weights["rgb"]["recoupling weights"], outputs["recoupling_weights"].mean(-1)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    for (title, name), tokens in zip(attention.items(), (3, 5, 7), strict=True):  # the class token and the frames
        assert explanations.attention["rgb"][title].shape == (2, tokens, tokens)
        expected = outputs[name].mean((1, 2))  # of n layers heads tokens tokens
        np.testing.assert_allclose(explanations.attention["rgb"][title], expected, rtol=1e-5, atol=1e-7)
    assert [title for title, _ in explanations.film_strips(0, "rgb")] == ["", "Grad-CAM", "motion"]
    assert drawing.strip_frames(8) == list(range(8))
    assert drawing.strip_frames(64) == [4, 12, 20, 28, 36, 44, 52, 60]


@pytest.mark.slow
def test_all_recoupling_modules_of_umdr_are_explained(small_demo, tmp_path):
    config = tiny_config(small_demo, "umdr_rgb")
    workdir = save_run(config, tmp_path / "umdr", **METRICS)
    evaluate(config, workdir, "best")
    source = read_source(workdir)
    weights = explain(source, [5, 17]).weights["rgb"]
    assert list(weights) == [f"recoupling weights {number}" for number in (1, 2, 3)]
    for values in weights.values():
        assert values.shape == (2, 8)
        assert np.ptp(values) > 0
    page = render(source, errors=1, correct=0)
    assert all(title in page for title in weights)


def test_clips_that_are_missing_or_others_are_left_out_and_the_page_says_why(run, tmp_path):
    page = render(read_source(run, data_dir=tmp_path))
    assert "Left out: clips and explanations; the prepared clips cannot be used: rgbd_demo is not prepared" in page
    assert charts(page) == [*TRAINING_CHARTS, *SCORE_CHARTS]
    assert '<article class="clip' not in page
    source = read_source(run)
    scores = dataclasses.replace(source.scores, names=tuple(f"other_{name}" for name in source.scores.names))
    with pytest.raises(ClipsMissingError, match="are not those of the scores"):
        explain(dataclasses.replace(source, runs=dataclasses.replace(source.runs, scores=(scores,))), [3])


def test_missing_scores_are_computed(run):
    split = "validation[:50%]"
    assert len(read_source(run, split).scores.names) == 12
    assert scores_file(run, split).is_file()


def test_names_cannot_become_markup(tmp_path):
    scores = made_scores(60, 12)
    evil = "</script><img src=x>%{y}"
    scores = dataclasses.replace(scores, class_names=(evil, *scores.class_names[1:]))
    scores.save(scores_file(tmp_path, "validation"))
    page = render(read_source(tmp_path))
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;img src=x" in page
    assert r"\u0026lt;\u002fscript" in page.lower() or r"&lt;\u002fscript" in page.lower()  # in the charts
    assert "img src=x&gt;%{y}" in page.replace(r"\u003e", ">")  # in the tables alone
    assert "x%{y}" not in page


def test_the_command_writes_a_small_page_of_many_classes_and_runs(tmp_path, capsys):
    for name, seed in (("many", 0), ("other", 1)):
        made_scores(seed=seed).save(scores_file(tmp_path / name, "validation"))
    out = tmp_path / "new" / "page.html"
    run_command(report, tmp_path / "many", "--compare", tmp_path / "other", "--out", out)
    assert capsys.readouterr().out.startswith(f"{out}: 6000 clips of validation, ")
    assert out.stat().st_size < 15e6
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]
    assert charts(out.read_text()) == [*SCORE_CHARTS, "runs", "patterns", "differences"]


def test_unusable_input_is_refused_in_one_line(tmp_path, capsys, small_demo):
    for name, clips in (("a", 60), ("b", 60), ("others", 61)):
        made_scores(clips, 12).save(scores_file(tmp_path / name, "validation"))
    a, b = tmp_path / "a", tmp_path / "b"
    (tmp_path / "empty").mkdir()
    write_config(tmp_path / "new", tiny_config(small_demo), ("a", "b"))
    file = scores_file(tmp_path / "damaged", "validation")
    file.parent.mkdir(parents=True)
    file.write_bytes(scores_file(a, "validation").read_bytes()[:3000])
    for arguments, message in (
        ((tmp_path / "absent",), "absent has neither scores of split 'validation'"),
        ((file,), "validation.npz has neither scores of split 'validation'"),
        ((tmp_path / "empty",), "empty has neither scores of split 'validation'"),
        ((a, "--split", "test"), "has neither scores of split 'test'"),
        ((tmp_path / "new",), "has no checkpoint of a whole epoch yet"),
        ((tmp_path / "damaged",), "file of scores"),
        ((a, "--compare", tmp_path / "others"), str(tmp_path / "others")),
        ((a, "--compare", b, a), "a is given twice"),
        ((a, "--config", "absent.py:depth"), "--config=absent.py:depth: no such file"),
        ((a, "--errors", "-1"), "--errors and --correct are numbers of clips"),
        ((a, "--out", file / "page.html"), "page.html cannot be written: "),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((ValueError, OSError)) as error:
            run_command(report, *arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert capsys.readouterr().out == ""
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left"
