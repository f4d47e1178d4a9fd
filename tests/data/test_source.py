"""Prepared splits, their index, protocols, and what a config makes of them."""

import itertools
import json
import logging
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax.data.source import (
    ClipInfo,
    ProtocolSplit,
    index_file,
    known_classes,
    open_split,
    open_splits,
    prepared_directory,
    resolve,
    to_base_splits,
)
from tests.datasets.conftest import RawFolder, decoded, frame
from tests.tiny import tiny_config

LENGTHS = {"a": 16, "b": 17, "c": 3, "d": 30, "e": 16, "f": 20}  # frames; the last two are validation


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A prepared `rgbd_folder` with two classes, colour JPEG and 16-bit depth PNG."""
    raw = RawFolder(tmp_path_factory.mktemp("source") / "raw")
    raw.root.mkdir()
    for name, frames in LENGTHS.items():
        raw.clip(name, frames=frames, depth="16 bit")
    lines = [f"{name} {frames} {i % 2}" for i, (name, frames) in enumerate(LENGTHS.items())]
    raw.lists(train=lines[:4], valid=lines[4:])
    raw.build()
    return raw.data_dir


@pytest.fixture
def damaged(data_dir, tmp_path):
    """The same data set, whose index may be damaged."""
    folder = tmp_path / "rgbd_folder" / "1.0.0"
    folder.mkdir(parents=True)
    for file in prepared_directory("rgbd_folder", data_dir).iterdir():
        if file.name.startswith("index_"):
            (folder / file.name).write_bytes(file.read_bytes())
        else:
            (folder / file.name).symlink_to(file)
    return tmp_path


def split_config(data_dir, modality="rgb", **fields):
    config = tiny_config(data_dir, modality)
    config.data.dataset = "rgbd_folder"
    config.update_from_flattened_dict(fields)
    return config


def test_a_split_describes_its_clips(data_dir):
    split = open_split("rgbd_folder", data_dir, None)
    assert (split.split, len(split)) == ("train", 4)
    assert (split.class_names, split.modalities) == (("0", "1"), ("rgb", "depth"))
    clip = split[3]
    assert (clip.name, clip.label) == ("d", 1)
    assert list(clip.frames["rgb"]) == [frame(f"rgb/d/{i}") for i in range(30)]
    for i, stored in enumerate(clip.frames["depth"]):  # stored without compression
        np.testing.assert_array_equal(decoded(stored), decoded(frame(f"depth/d/{i}", "16 bit")))


@pytest.mark.parametrize(
    "split", ["train", "train[1:3]", "train[:25%]", "train[25%:]", "validation+train[:2]", "train[-1:]+train[:1]"]
)
def test_the_index_matches_the_clips_of_every_part(data_dir, split):
    whole = open_split("rgbd_folder", data_dir, split)
    for opened in (whole, whole.select(range(len(whole))[::-1]), pickle.loads(pickle.dumps(whole))):
        infos = [ClipInfo(c.name, c.label, {m: len(frames) for m, frames in c.frames.items()}) for c in opened]
        assert list(opened.clips) == infos
        assert opened.names == tuple(info.name for info in infos)
        assert len(opened) == len(infos) > 0
    assert [LENGTHS[clip.name] for clip in whole.clips] == [clip.frame_counts["rgb"] for clip in whole.clips]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing, the index of clips"),
        (b"\xff", "not an index of clips"),
        (b"[]", "not an index of clips"),
        ({"names": ["a"], "labels": [0]}, "not an index of clips .*frames"),
        ({"names": ["a"], "labels": [0], "frames": {"rgb": [1, 2]}}, "not an index of clips"),
        ({"names": [], "labels": [], "frames": {"rgb": []}}, "lists 0 clips"),
        ({"names": ["a"], "labels": [0], "frames": {"rgb": [1], "depth": [1]}}, "lists 1 clips of depth, rgb, but 4"),
        ({"names": [*"abcd"], "labels": [0] * 4, "frames": {"rgb": [1] * 4}}, "4 clips of rgb, but 4 of rgb, depth"),
    ],
)
def test_a_missing_or_damaged_index_is_named_with_advice(damaged, content, problem):
    file = index_file(prepared_directory("rgbd_folder", damaged), "train")
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises((ValueError, FileNotFoundError), match=problem) as error:
        open_split("rgbd_folder", damaged, "train")
    assert str(file) in str(error.value)
    assert "build it again with `python -m rgbd_jax data build rgbd_folder`" in str(error.value)
    assert len(open_split("rgbd_folder", damaged, "validation")) == 2


@pytest.mark.parametrize("split", ["test", "train[1:", "", "train[99:]"])
def test_an_unknown_split_is_an_error_that_lists_the_splits(data_dir, split):
    with pytest.raises(ValueError, match="there are train, validation") as error:
        open_split("rgbd_folder", data_dir, split)
    assert repr(split) in str(error.value)


def test_data_that_is_not_prepared_names_the_folder_and_the_command(data_dir, tmp_path):
    (tmp_path / "rgbd_folder").mkdir()
    prepared = prepared_directory("rgbd_folder", data_dir)
    (tmp_path / "rgbd_folder" / "incomplete.ABC_1.0.0").symlink_to(prepared)  # a build that was killed
    with pytest.raises(FileNotFoundError, match="rgbd_folder is not prepared") as error:
        open_splits(split_config(tmp_path))
    assert str(tmp_path / "rgbd_folder") in str(error.value)
    assert f"python -m rgbd_jax data build rgbd_folder --data_dir {tmp_path}" in str(error.value)
    assert known_classes(split_config(tmp_path)) is None
    for version in ("1.0.0", "1.9.0", "1.10.0"):
        (tmp_path / "rgbd_folder" / version).symlink_to(prepared)
    assert open_split("rgbd_folder", tmp_path, "train").directory.name == "1.10.0"


def test_a_config_that_does_not_fit_the_data_is_refused(data_dir):
    assert known_classes(split_config(data_dir)) == open_splits(split_config(data_dir)).num_classes == 2
    assert open_splits(split_config(data_dir, **{"model.num_classes": 5})).num_classes == 5
    with pytest.raises(ValueError, match=r"config.model.num_classes=1, but .* has 2 classes"):
        open_splits(split_config(data_dir, **{"model.num_classes": 1}))


@pytest.mark.parametrize(("modality", "training"), [("rgb", ("b", "d")), ("depth", ("d",)), ("fusion", ("d",))])
def test_the_reference_protocol_leaves_out_short_clips_and_logs_how_many(damaged, caplog, modality, training):
    file = index_file(prepared_directory("rgbd_folder", damaged), "train")
    content = json.loads(file.read_text())
    content["frames"]["depth"][1] = 12  # b: its depth stops early
    file.write_text(json.dumps(content))
    assert open_splits(split_config(damaged, modality)).training.names == ("a", "b", "c", "d")
    with caplog.at_level(logging.INFO, logger="rgbd_jax"):
        splits = open_splits(split_config(damaged, modality, **{"data.reference_protocol": True}))
    assert splits.training.names == tuple(clip.name for clip in splits.training) == training
    assert splits.evaluation.names == ("f",)
    assert f"train: {4 - len(training)} of 4 clips have 16 frames or fewer and are left out" in caplog.text
    short_alone = {"data.reference_protocol": True, "data.eval_split": "validation[:1]"}
    with pytest.raises(ValueError, match=r"leaves no clip of split 'validation\[:1\]'"):
        open_splits(split_config(damaged, modality, **short_alone))


@given(
    clips=st.lists(st.integers(0, 30), unique=True, max_size=20).map(lambda names: {str(n): -n for n in names}),
    members=st.dictionaries(
        st.from_regex(r"[a-z]{1,3}_train", fullmatch=True), st.sets(st.integers(0, 30).map(str)), max_size=5
    ),
)
def test_base_splits_are_disjoint_and_make_up_every_protocol_split(clips, members):
    base, unions = to_base_splits(clips, members)
    stored = list(itertools.chain(*base.values()))
    assert len(stored) == len(set(stored))
    for split, names in members.items():
        expected = {clips[name] for name in clips if name in names}
        assert {clip for part in unions.get(split, ()) for clip in base[part]} == expected
    assert set(stored) == {clips[name] for name in clips if any(name in names for names in members.values())}
    for part in base.values():  # in the order of the clips
        assert part == [clip for clip in clips.values() if clip in part]
    # No more base splits than there are combinations of protocol splits.
    combinations = {tuple(name in names for names in members.values()) for name in clips} - {(False,) * len(members)}
    assert len(base) == len(combinations)


PROTOCOLS = {
    "cs_train": ProtocolSplit(splits=["a", "b"], classes=60),
    "cs_validation": ProtocolSplit(splits=["c"], classes=60),
}


@pytest.mark.parametrize(
    ("spec", "stored", "classes"),
    [
        ("cs_train", "a+b", 60),
        (" cs_train + cs_validation ", "a+b+c", 60),
        ("cs_train[:20%]", "a[:20%]+b[:20%]", 60),
        ("cs_train[20%:40%]+c", "a[20%:40%]+b[20%:40%]+c", 120),
        ("cs_train[-5%:]", "a[-5%:]+b[-5%:]", 60),
        ("cs_train[:50%]+cs_train[50%:]", "a[:50%]+b[:50%]+a[50%:]+b[50%:]", 60),
        ("a[3:]", "a[3:]", 120),
    ],
)
def test_splits_are_written_in_base_splits(spec, stored, classes):
    assert resolve(spec, PROTOCOLS, {"a", "b", "c"}, 120) == (stored, classes)


@pytest.mark.parametrize("spec", ["cs", "", "cs_train[", "cs_train[:3]", "cs_train[2]", "cs_train+a", "cs_train+"])
def test_what_is_none_of_them_is_refused(spec):
    with pytest.raises(ValueError, match=r"no split|in percent|share clips"):
        resolve(spec, PROTOCOLS, {"a", "b", "c"}, 120)
