"""Clips of 16 frames or fewer are kept, or left out as the reference does; how long clips are is known beforehand."""

import json
import logging

import numpy as np
import pytest

from rgbd_jax.data import frame_counts as counting
from rgbd_jax.data.frame_counts import INDEX_FILE, frame_counts
from rgbd_jax.data.source import open_split
from rgbd_jax.data.splits import open_splits
from tests.datasets.conftest import RawFolder
from tests.tiny import tiny_config

LENGTHS = {"a": 16, "b": 17, "c": 3, "d": 30, "e": 16, "f": 20}


@pytest.fixture
def built(tmp_path) -> RawFolder:
    (tmp_path / "raw").mkdir()
    raw = RawFolder(tmp_path / "raw")
    for name, frames in LENGTHS.items():
        raw.clip(name, frames=frames)
    lines = [f"{name} {frames} {i % 2}" for i, (name, frames) in enumerate(LENGTHS.items())]
    raw.lists(train=lines[:4], valid=lines[4:])
    raw.build()
    return raw


def split_config(raw, stream="rgb", **fields):
    config = tiny_config(raw.data_dir, stream)
    config.data.dataset = "rgbd_folder"
    config.update_from_flattened_dict(fields)
    return config


def names(split):
    return [clip.name for clip in split]


def test_short_clips_are_kept_by_default(built, caplog):
    splits = open_splits(split_config(built))
    assert names(splits.training) == ["a", "b", "c", "d"]
    assert names(splits.evaluation) == ["e", "f"]


@pytest.mark.parametrize(("stream", "training"), [("rgb", ["b", "d"]), ("depth", ["d"]), ("fusion", ["d"])])
def test_the_reference_protocol_leaves_them_out_and_says_how_many(built, caplog, stream, training):
    config = split_config(built, stream, **{"data.reference_protocol": True})
    index = open_splits(config).training.directory / INDEX_FILE
    index.write_text(index.read_text().replace('"depth": [16, 17', '"depth": [16, 12'))  # b: its depth stops early
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="rgbd_jax"):
        splits = open_splits(config)
    assert names(splits.training) == training
    assert len(splits.training) == len(training)
    assert names(splits.evaluation) == ["f"]
    assert f"train: {4 - len(training)} of 4 clips have 16 frames or fewer and are left out" in caplog.text
    assert "validation: 1 of 2 clips" in caplog.text
    with pytest.raises(IndexError):
        splits.evaluation[1]


def test_a_split_without_longer_clips_is_refused(built):
    config = split_config(built, **{"data.reference_protocol": True, "data.eval_split": "validation[:1]"})
    with pytest.raises(ValueError, match=r"leaves no clip of split 'validation\[:1\]'"):
        open_splits(config)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", [16, 17, 3, 30]), ("train[1:3]", [17, 3]), ("validation+train[:2]", [16, 20, 16, 17])],
)
def test_counts_are_of_the_clips_of_the_split_whether_built_or_counted_anew(built, split, expected):
    opened = open_split("rgbd_folder", built.data_dir, split)
    index = opened.directory / INDEX_FILE
    of_build = json.loads(index.read_text())
    np.testing.assert_array_equal(frame_counts(opened)["rgb"], expected)
    np.testing.assert_array_equal([len(clip.frames["rgb"]) for clip in opened], expected)
    index.unlink()
    np.testing.assert_array_equal(frame_counts(opened)["rgb"], expected)
    counted = json.loads(index.read_text())
    assert counted == {file: of_build[file] for file in counted}


def test_a_build_leaves_nothing_to_be_counted(built, monkeypatch):
    monkeypatch.setattr(counting, "_count", None)
    assert list(frame_counts(open_split("rgbd_folder", built.data_dir, "train"))["depth"]) == [16, 17, 3, 30]


def test_an_index_that_is_damaged_or_of_other_files_is_made_anew(built, caplog):
    opened = open_split("rgbd_folder", built.data_dir, "validation")
    index = opened.directory / INDEX_FILE
    good = json.loads(index.read_text())
    index.write_text("{")
    assert list(frame_counts(opened)["rgb"]) == [16, 20]
    assert "is damaged and will be replaced" in caplog.text
    (file,) = [name for name in good if "validation" in name]
    index.write_text(json.dumps({**good, file: {**good[file], "bytes": 1, "rgb": [1, 1]}}))
    assert list(frame_counts(opened)["rgb"]) == [16, 20]
    assert json.loads(index.read_text()) == good


def test_counts_that_cannot_be_kept_are_used_all_the_same(built, monkeypatch, caplog):
    opened = open_split("rgbd_folder", built.data_dir, "train")
    (opened.directory / INDEX_FILE).unlink()

    def refuse(*unused):
        raise OSError("read-only file system")

    monkeypatch.setattr(counting, "write_index", refuse)
    assert list(frame_counts(opened)["rgb"]) == [16, 17, 3, 30]
    assert "cannot be kept" in caplog.text
