"""Scores of every clip: what evaluation collects, with one process and with two, and the file they lie in."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax import metrics
from rgbd_jax.data import loader
from rgbd_jax.data.source import open_split
from rgbd_jax.evaluate import Evaluator, evaluate
from rgbd_jax.parallel.mesh import make_mesh, place, replicated
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.step import Stream, schedule_at
from tests.tiny import save_run, tiny_config

ROOT = Path(__file__).parents[1]


def some_scores(**changed):
    rng = np.random.default_rng(0)
    scores = Scores(
        names=("wave/a", "wave/b", "stop/ü"),
        labels=np.array([0, 0, 3]),
        heads={name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("logits", "rgb", "depth")},
        modality="fusion",
        dataset="rgbd_folder",
        split="validation[:50%]",
        step=450,
        class_names=("wave", "point", "circle", "stop"),
    )
    return dataclasses.replace(scores, **changed)


def assert_equal(found, expected):
    for field in dataclasses.fields(Scores):
        if field.name not in ("heads", "labels"):
            assert getattr(found, field.name) == getattr(expected, field.name)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.heads.keys() == expected.heads.keys()
    for name, logits in expected.heads.items():
        np.testing.assert_array_equal(found.heads[name], logits)
        assert found.heads[name].dtype == np.float32


def test_file_holds_all_that_was_saved(tmp_path):
    for scores in (some_scores(), some_scores(class_names=())):
        path = tmp_path / "new" / "scores.npz"
        scores.save(path)
        assert_equal(Scores.load(path), scores)
    assert [file.name for file in path.parent.iterdir()] == ["scores.npz"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.array([0, 0, 4])}, "clip stop/ü has label 4, expected 0 to 3"),
        ({"labels": np.array([0, -1, 3])}, "clip wave/b has label -1"),
        ({"labels": np.array([0.0, 0.0, 3.0])}, "labels is float64"),
        ({"labels": np.array([0, 0])}, "labels has 2 entries, expected 3"),
        ({"names": ("wave/a", "wave/b", "wave/a")}, "more than once, such as wave/a"),
        ({"names": ("wave/a",)}, "names has 1 entries, expected 3"),
        ({"heads": {"rgb": np.zeros((3, 4), np.float32)}}, "no array heads/logits"),
        ({"heads": {"logits": np.zeros((3, 4))}}, "heads/logits is float64"),
        ({"heads": {"logits": np.zeros(3, np.float32)}}, r"heads/logits is float32 of shape \(3,\)"),
        (
            {"heads": {"logits": np.zeros((3, 4), np.float32), "rgb": np.zeros((3, 5), np.float32)}},
            r"heads/rgb has shape \(3, 5\), expected \(3, 4\)",
        ),
        ({"names": (), "labels": np.zeros(0, int), "heads": {"logits": np.zeros((0, 4), np.float32)}}, "of no clip"),
        ({"class_names": tuple("abcde")}, "5 names for 4 classes"),
    ],
)
def test_unusable_scores_are_not_saved(tmp_path, changed, said):
    path = tmp_path / "scores.npz"
    some_scores().save(path)
    with pytest.raises(ValueError, match=rf"scores.npz: .*{said}"):
        some_scores(**changed).save(path)
    assert_equal(Scores.load(path), some_scores())


def damaged(path, change):
    some_scores().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop("labels"), "no array labels"),
        (lambda arrays: arrays.pop("split"), "no array split"),
        (lambda arrays: arrays.update(labels=arrays["labels"] + 1), "label 4"),
        (lambda arrays: arrays.update(names=arrays["names"][:2]), "names has 2 entries"),
        (lambda arrays: arrays.update(step=np.array(0.5)), "step is float64"),
        (lambda arrays: arrays.update(extra=np.zeros(1)), "nothing is known of an array extra"),
    ],
)
def test_faulty_arrays_of_a_file_are_named(tmp_path, change, said):
    path = tmp_path / "scores.npz"
    damaged(path, change)
    with pytest.raises(ValueError, match=rf"scores.npz: .*{said}"):
        Scores.load(path)


def test_files_that_are_no_scores(tmp_path):
    path = tmp_path / "scores.npz"
    some_scores().save(path)
    whole = path.read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, names=np.array([{}], object))
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    contents = (b"", b"nothing", whole[:-300], pickled.read_bytes(), single.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"scores.npz is not a whole .npz file of scores"):
            Scores.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Scores.load(tmp_path / "absent.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_flipped_bits_never_change_scores_unnoticed(tmp_path, write):
    path = tmp_path / "scores.npz"
    damaged(path, lambda arrays: None)
    with np.load(path) as file:
        write(path, **dict(file))
    whole = path.read_bytes()
    said = []
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            found = Scores.load(path)
        except ValueError as error:
            said.append(str(error))
        else:  # a date or so, or the number of arrays in the file
            assert_equal(found, some_scores(heads={name: some_scores().heads[name] for name in found.heads}))
    assert len(said) > len(whole) / 14
    assert all(str(path) in text for text in said)


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.npz"
    some_scores().save(path)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        some_scores(step=900).save(path)
    assert_equal(Scores.load(path), some_scores())
    assert list(tmp_path.iterdir()) == [path]


SPLITS = st.text("train[]:%8/\\. +-5B", min_size=1, max_size=12)


@given(SPLITS, SPLITS)
def test_every_split_has_a_safe_file_of_its_own(one, other):
    files = [scores_file(Path("run"), split) for split in (one, other)]
    assert (files[0] == files[1]) == (one == other)
    for file in files:
        assert file.parent == Path("run/scores")
        assert not set("[]:/\\ ") & set(file.name)


@pytest.fixture(scope="module")
def setup(small_demo):
    """A network that was not trained, and its state and moment."""
    config = tiny_config(small_demo)
    config.eval.batch_size = 10  # the last batch of the 24 clips is not full
    stream = Stream(config, 12)
    return stream, place(stream.init(3), replicated(make_mesh(1))), schedule_at(config, 1.0)


def assert_same_logits(found, expected):
    """Logits differ by much less than from clip to clip, so that clips in another order would show.

    Some clips of the demo look alike to the RGB stream, hence most clips and not all.
    """
    assert found.keys() == expected.keys()
    for head, logits in expected.items():
        spread = logits.std(axis=0).max()
        assert np.abs(found[head] - logits).max() < 0.05 * spread
        assert np.median(np.abs(np.roll(logits, 1, axis=0) - logits).max(axis=1)) > 0.1 * spread


def test_scores_are_those_of_the_clips_in_the_order_of_the_split(setup):
    stream, state, moment = setup
    config = stream.config
    split = open_split("rgbd_demo", config.data.data_dir, "validation")
    found, scores = Evaluator(stream, split, make_mesh(1)).measure(state, moment)
    clips = [split[i] for i in range(len(split))]
    assert scores.names == tuple(clip.name for clip in clips)
    assert scores.labels.tolist() == [clip.label for clip in clips]
    assert (scores.modality, scores.dataset, scores.split, scores.step) == ("rgb", "rgbd_demo", "validation", 0)
    assert scores.class_names == split.class_names
    assert found["clips"] == len(clips) == 24
    # What is written is what was measured.
    again = metrics.measure(scores.heads, scores.labels, {})
    assert again == {name: found[name] for name in again}
    assert {"loss", "cross_entropy", "distillation", "top1_small", "top1_medium", "top1_large"} <= found.keys()
    # The same clips all in one batch.
    with config.unlocked():
        other = config.copy_and_resolve_references()
    other.eval.batch_size = 24
    alone, scores_alone = Evaluator(Stream(other, 12), split, make_mesh(1)).measure(state, moment)
    assert scores_alone.names == scores.names
    assert_same_logits(scores_alone.heads, scores.heads)
    batch = next(iter(loader.eval_batches(split, config, batch_size=5)))
    output, _ = jax.jit(stream.forward)(state.params, state.batch_stats, *stream.inputs(batch), moment.temperature)
    first = {head: logits[:5] for head, logits in scores.heads.items()}
    assert_same_logits(jax.device_get(dict(output.heads)), first)
    assert alone["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_evaluation_leaves_the_scores_in_the_workdir(setup, tmp_path, caplog):
    stream, state, _ = setup
    workdir = tmp_path / "run"
    config = stream.config.copy_and_resolve_references()
    config.data.eval_split = "validation[:50%]"
    save_run(config, workdir, state)
    with caplog.at_level("INFO", "rgbd_jax"):
        result = evaluate(config, workdir, "best")
    file = scores_file(workdir, "validation[:50%]")
    assert str(file) in caplog.text
    scores = Scores.load(file)
    assert (scores.split, scores.step, len(scores.names)) == ("validation[:50%]", 0, 12)
    again = metrics.measure(scores.heads, scores.labels, {})
    assert again == {name: result[name] for name in again}


def test_evaluation_refuses_an_unknown_stream(setup, tmp_path):
    config = setup[0].config.copy_and_resolve_references()
    with config.unlocked():
        config.modality = "audio"
    with pytest.raises(ValueError, match=r"config\.modality='audio'"):
        evaluate(config, tmp_path, "best")


PROCESS = """
import json, sys
import jax
from absl import flags
from rgbd_jax.data.source import open_split
from rgbd_jax.evaluate import Evaluator
from rgbd_jax.scores import Scores
from rgbd_jax.parallel.mesh import make_mesh, place, state_sharding
from rgbd_jax.step import Stream, schedule_at
from tests.tiny import tiny_config
from pathlib import Path

flags.FLAGS(["test"])
data_dir, folder, address, number, shards = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
assert jax.device_count() == 2 and jax.local_device_count() == 1
config = tiny_config(data_dir)
config.eval.batch_size = 10
stream = Stream(config, 12)
mesh = make_mesh(int(shards))
state = place(stream.init(3), state_sharding(stream.shapes(), mesh))
split_up = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.is_fully_replicated]
assert bool(split_up) == (shards == "2")
split = open_split("rgbd_demo", data_dir, "validation")
figures, scores = Evaluator(stream, split, mesh).measure(state, schedule_at(config, 1.0))
scores.save(Path(folder) / f"{number}.npz")
(Path(folder) / f"{number}.json").write_text(json.dumps(figures))
"""


@pytest.mark.parametrize("shards", [1, 2])
def test_two_processes_find_what_one_does(setup, small_demo, tmp_path, shards):
    stream, state, moment = setup
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(small_demo), str(tmp_path), address, str(number), str(shards)],
            env=environment,
            cwd=ROOT,
        )
        for number in range(2)
    ]
    try:
        assert [process.wait(timeout=400) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    split = open_split("rgbd_demo", str(small_demo), "validation")
    expected, scores = Evaluator(stream, split, make_mesh(1)).measure(state, moment)
    for number in range(2):
        found = Scores.load(tmp_path / f"{number}.npz")
        assert found.names == scores.names
        np.testing.assert_array_equal(found.labels, scores.labels)
        assert_same_logits(found.heads, scores.heads)
        figures = json.loads((tmp_path / f"{number}.json").read_text())
        assert figures.keys() == expected.keys()
        assert figures["clips"] == 24
        assert figures["loss"] == pytest.approx(expected["loss"], rel=1e-5)
