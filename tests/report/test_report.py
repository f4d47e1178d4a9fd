"""The page of a run, from its workdir to the file: what it says, what it leaves out, and what it refuses."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from rgbd_jax.checkpoint.provenance import provenance
from rgbd_jax.checkpoint.workdir import write_config
from rgbd_jax.data.splits import open_splits
from rgbd_jax.evaluate import evaluate
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools.report.chart import embedded
from rgbd_jax.tools.report.looked_at import ClipsMissingError, look
from rgbd_jax.tools.report.page import render
from rgbd_jax.tools.report.source import read_source
from rgbd_jax.tools.report.strips import draw_strip, shown_frames
from tests.conftest import ROOT
from tests.report.made_scores import made_scores
from tests.tiny import save_run, tiny_config

FIGURES = {"loss": 2.5, "cross_entropy": 2.4, "top1": 0.1, "top5": 0.4}


@pytest.fixture(scope="module")
def run(small_demo, tmp_path_factory):
    """The workdir of a tiny network as it is initialised, saved as if an epoch of 3 steps had passed, and evaluated."""
    config = tiny_config(small_demo)
    splits = open_splits(config)
    produced_by = provenance(config, splits.training, splits.evaluation)
    workdir = save_run(config, tmp_path_factory.mktemp("runs") / "tiny_rgb", provenance=produced_by, **FIGURES)
    lines = [
        {"step": step, "kind": "train", "learning_rate": 0.1, "gradient_norm": 2.0, **FIGURES} for step in (1, 2, 3)
    ]
    lines.append({"step": 3, "kind": "validation", **FIGURES})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(config, workdir, "best")
    return workdir


@pytest.fixture(scope="module")
def page(run):
    return render(read_source(run, None), errors=3, right=1)


def test_page_of_a_run(page, run):
    scores = Scores.load(scores_file(run, "validation"))
    right = int((scores.heads["logits"].argmax(1) == scores.labels).sum())
    assert f"{right} of 24 clips" in page
    produced_by = json.loads((run / "checkpoints" / "3" / "metadata" / "metadata").read_text())["provenance"]
    for said in (
        "validation (24 clips, 12 classes)", "best, after epoch 1 of 2", "48 of train for training",
        produced_by["started"][:10], f"jax {produced_by['versions']['jax']}", produced_by["git"] or "",
        "trained on train, evaluated on validation, 1 view of each clip",
    ):  # fmt: skip
        assert said in page, said
    assert "Left out" not in page
    charts = set(re.findall(r'data-chart="([^"]+)"', page))
    assert charts >= {
        "chart-loss", "chart-accuracy", "chart-rate", "chart-temperature", "chart-norm", "chart-confusion",
        "chart-classes", "chart-scatter", "chart-confidence", "chart-weights-rgb", "chart-attention-rgb-small",
        "chart-attention-rgb-medium", "chart-attention-rgb-large", "chart-tokens-rgb", "chart-agreement", "chart-cka",
    }  # fmt: skip
    assert page.count('<article class="clip is-wrong">') == 3
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(.)', without_scripts)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', without_scripts)


def test_the_network_is_asked_about_the_clips_that_were_scored(run, small_demo):
    source = read_source(run, None)
    places = [5, 17]
    found = look(source, places)
    assert [clip.place for clip in found] == places
    trained = load_trained(run)
    splits = open_splits(tiny_config(small_demo))
    names = ("recoupling_weights", "small_attention", "medium_attention", "large_attention")
    frames = {"rgb": np.stack([clip.seen["rgb"].frames for clip in found])}
    asked = jax.jit(lambda *weights: trained.stream.predict_step(*weights, {"frames": frames}, names))
    said = jax.device_get(asked(trained.params, trained.batch_stats)).intermediates
    for i, clip in enumerate(found):
        assert splits.evaluation[clip.place].name == source.scores.names[clip.place]
        logits = source.scores.scores[0].heads["logits"][clip.place].astype(np.float64)
        np.testing.assert_allclose(clip.probabilities, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)
        seen = clip.seen["rgb"]
        np.testing.assert_allclose(seen.weights, [row.mean() for row in said["recoupling_weights"][i]], rtol=1e-5)
        for branch, count in zip(("small", "medium", "large"), (2, 4, 6), strict=True):
            layers = said[f"{branch}_attention"][:, i]  # depth heads n n
            expected = sum(head for layer in layers for head in layer) / (layers.shape[0] * layers.shape[1])
            assert seen.attention[branch].shape == (count + 1, count + 1)
            np.testing.assert_allclose(seen.attention[branch], expected, rtol=1e-5, atol=1e-7)
    strip = draw_strip(found[0], "clip")
    assert [row.title for row in strip.rows] == ["RGB", "RGB motion", "RGB evidence"]
    assert strip.numbers == (1, 2, 3, 4, 5, 6, 7, 8)
    assert shown_frames(64) == [4, 12, 20, 28, 36, 44, 52, 60]


def test_clips_that_are_not_there_are_left_out_and_the_page_says_why(run, tmp_path):
    with pytest.raises(ClipsMissingError, match="rgbd_demo is not prepared in"):
        look(read_source(run, None, data_dir=tmp_path), [0])
    page = render(read_source(run, None, data_dir=tmp_path))
    assert (
        "Left out: pictures of clips, recoupling weights and attention. The data set rgbd_demo is not prepared" in page
    )
    assert '<article class="clip' not in page
    assert "Left out: the curves" not in page


def test_scores_of_another_data_set_are_not_shown_with_its_clips(run, tmp_path):
    scores = Scores.load(scores_file(run, "validation"))
    source = read_source(run, None)
    other = Scores(
        names=tuple(f"other_{name}" for name in scores.names), labels=scores.labels, heads=scores.heads, modality="rgb",
        dataset="rgbd_demo", split="validation", step=3,
    )  # fmt: skip
    file = scores_file(run, "validation")
    kept = file.read_bytes()
    other.save(file)
    try:
        with pytest.raises(ClipsMissingError, match=r"but other_.* was scored: the data set is another one"):
            look(read_source(run, None), [3])
    finally:
        file.write_bytes(kept)
    assert source.scores.names == scores.names


def test_missing_scores_are_made(run, small_demo, tmp_path, caplog):
    split = "validation[:50%]"
    with caplog.at_level("INFO", "rgbd_jax"):
        source = read_source(run, split)
    assert "does not exist: evaluating" in caplog.text
    assert len(source.scores.names) == 12
    assert scores_file(run, split).is_file()


def test_names_cannot_become_markup(tmp_path):
    scores = made_scores(60, 12)
    evil = "</script><img src=x onerror=alert(1)>"
    names = (evil, *scores.class_names[1:])
    Scores(**{**vars(scores), "class_names": names}).save(scores_file(tmp_path / "evil", "validation"))
    page = render(read_source(tmp_path / "evil", None))
    assert "<img src=x" not in page
    assert "&lt;/script&gt;" in page
    assert json.loads(embedded(json.dumps([evil]))) == [evil]
    assert "<" not in embedded(json.dumps([evil]))


def report(*arguments):
    command = [sys.executable, "-m", "rgbd_jax.tools.report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_command_line_writes_a_small_page_of_many_classes(tmp_path):
    made_scores().save(scores_file(tmp_path / "many", "validation"))
    finished = report(tmp_path / "many", "--out", tmp_path / "new" / "page.html")
    assert finished.returncode == 0, finished.stderr
    page = tmp_path / "new" / "page.html"
    assert finished.stdout.startswith(f"{page}: 6000 clips of validation, ")
    assert page.stat().st_size < 15e6
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]
    assert "left out: there is no checkpoint" in finished.stderr


@pytest.fixture
def two(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        made_scores(60, 12, seed=seed).save(scores_file(tmp_path / name, "validation"))
    return tmp_path / "a", tmp_path / "b"


def test_wrong_input_is_refused_in_one_line(two, tmp_path, capsys, monkeypatch):
    from rgbd_jax.tools.report.__main__ import main

    monkeypatch.setattr("rgbd_jax.console.log_to_stderr", lambda: None)  # handlers would stay for other tests
    a, b = two
    (tmp_path / "empty").mkdir()
    file = scores_file(tmp_path / "damaged", "validation")
    file.parent.mkdir(parents=True)
    file.write_bytes(scores_file(a, "validation").read_bytes()[:3000])
    made_scores(61, 12).save(scores_file(tmp_path / "others", "validation"))
    for arguments, said in (
        ((tmp_path / "absent",), "absent does not exist; expected the folder of a run"),
        ((file,), "is a file; expected the folder of a run"),
        ((tmp_path / "empty",), "has neither scores of split 'validation'"),
        ((a, "--split", "test"), "has neither scores of split 'test'"),
        ((tmp_path / "damaged",), "is not a whole .npz file of scores"),
        ((a, "--compare", tmp_path / "others"), "cannot be fused: they are not of the same clips"),
        ((a, "--compare", b, a), "a is given twice"),
        ((a, "--config", "absent.py:depth"), "--config=absent.py:depth: there is no file absent.py"),
        ((a, "--config", "configs/demo.py:sound"), "the stream is 'sound', expected one of rgb, depth, fusion"),
        ((a, "--out", file / "page.html"), "page.html cannot be written: "),
    ):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert str(stopped.value.code).startswith("error: "), arguments
        assert said in str(stopped.value.code)
        assert "\n" not in str(stopped.value.code)
        assert capsys.readouterr().out == ""
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left"


def test_error_of_the_command_is_a_line_on_stderr(tmp_path):
    finished = report(tmp_path / "absent")
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr == f"error: {tmp_path}/absent does not exist; expected the folder of a run\n"


def test_run_without_a_checkpoint_is_refused(run, small_demo, tmp_path):
    write_config(tmp_path / "new", tiny_config(small_demo), ("a", "b"))
    with pytest.raises(FileNotFoundError, match="has no checkpoint of a whole epoch yet"):
        read_source(tmp_path / "new", None)
