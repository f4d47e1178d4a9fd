"""Scores of every clip and the file they lie in."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax.scores import Scores, scores_file


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
    np.testing.assert_equal(vars(found), vars(expected))
    assert {logits.dtype for logits in found.heads.values()} == {np.dtype(np.float32)}


def test_file_holds_all_that_was_saved(tmp_path):
    for scores in (some_scores(), some_scores(class_names=())):
        path = tmp_path / "new" / "scores.npz"
        scores.save(path)
        assert_equal(Scores.load(path), scores)
    assert [file.name for file in path.parent.iterdir()] == ["scores.npz"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.array([0, 0, 4])}, "clip stop/ü has label 4, expected 0 to 3"),
        ({"labels": np.array([0, -1, 3])}, "clip wave/b has label -1"),
        ({"labels": np.array([0.0, 0.0, 3.0])}, "labels is float64"),
        ({"labels": np.array([0, 0])}, r"labels has shape \(2,\), expected \(3,\)"),
        ({"names": ["wave/a", "wave/b", "wave/a"]}, "more than once, such as wave/a"),
        ({"names": ["wave/a"]}, r"names has shape \(1,\), expected \(3,\)"),
        ({"heads/logits": np.zeros((3, 4))}, "heads/logits is float64"),
        ({"heads/logits": np.zeros(3, np.float32)}, r"heads/logits is float32 of shape \(3,\)"),
        ({"heads/logits": np.zeros((0, 4), np.float32)}, "there is no clip"),
        ({"heads/rgb": np.zeros((3, 5), np.float32)}, r"heads/rgb has shape \(3, 5\), expected \(3, 4\)"),
        ({"class_names": list("abcde")}, "5 names for 4 classes"),
        ({"step": 0.5}, "step is float64"),
        ({"extra": np.zeros(1)}, "unknown array extra"),
        ({"heads/logits": None}, "no array heads/logits"),
    ],
)
def test_faulty_arrays_of_a_file_are_named(tmp_path, changed, message):
    path = tmp_path / "scores.npz"
    some_scores().save(path)
    with np.load(path) as file:
        arrays = {**file, **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=rf"scores.npz: .*{message}"):
        Scores.load(path)


def test_files_that_are_no_scores(tmp_path):
    path = tmp_path / "scores.npz"
    some_scores().save(path)
    whole = path.read_bytes()
    np.savez(tmp_path / "pickled.npz", names=np.array([{}], object))
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez_compressed(tmp_path / "bomb.npz", names=np.zeros(1 << 20))  # an .npz file of scores is not compressed
    others = [(tmp_path / name).read_bytes() for name in ("pickled.npz", "single.npy", "bomb.npz")]
    for content in (b"", b"nothing", whole[:-300], *others):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"scores.npz is not a complete .npz file of scores"):
            Scores.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Scores.load(tmp_path / "absent.npz")


def test_flipped_bits_never_change_scores_unnoticed(tmp_path):
    path = tmp_path / "scores.npz"
    some_scores().save(path)
    whole = path.read_bytes()
    messages = []
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            found = Scores.load(path)
        except ValueError as error:
            messages.append(str(error))
        else:  # a date or so, or the number of arrays in the file
            assert_equal(found, some_scores(heads={name: some_scores().heads[name] for name in found.heads}))
    assert len(messages) > len(whole) / 14
    assert all(str(path) in message for message in messages)


SPLITS = st.text("train[]:%8/\\. +-5B", min_size=1, max_size=12)


@given(SPLITS, SPLITS)
def test_every_split_has_a_safe_file_of_its_own(one, other):
    files = [scores_file(Path("run"), split) for split in (one, other)]
    assert (files[0] == files[1]) == (one == other)
    for file in files:
        assert file.parent == Path("run/scores")
        assert not set("[]:/\\ ") & set(file.name)
