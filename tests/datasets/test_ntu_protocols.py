"""The protocols of NTU RGB+D: the rules against the published lists, name for name, and on prepared clips."""

import itertools
import re

import pytest
from rgbd_jax.datasets.ntu_rgbd.builder import CLASS_NAMES
from rgbd_jax.datasets.ntu_rgbd.protocols import PROTOCOLS

from rgbd_jax.data.source import open_split
from tests.datasets import ntu
from tests.datasets.test_split_lists import SHARED_SPLITS, needs_shared_splits, read

RULES = {protocol.name: protocol.split_of for protocol in PROTOCOLS}
ADDED = "45, 46, 47, 49, 50, 52-59, 70, 74, 78, 80-86, 89, 91-95, 97, 98, 100, 103"


def published(folder):
    """The names of both lists, by split."""
    lists = {"train": "train.txt", "validation": "valid.txt"}
    lines = {split: read(SHARED_SPLITS / "NTU-RGBD" / folder / file) for split, file in lists.items()}
    for line in itertools.chain(*lines.values()):
        assert line.name.endswith("_rgb")
        assert line.label == int(line.name[17:20]) - 1
    return {split: [line.name.removesuffix("_rgb") for line in part] for split, part in lines.items()}


@needs_shared_splits
@pytest.mark.parametrize(("protocol", "folder"), [("cs", "@CS"), ("cv", "@CV")])
def test_the_rules_give_the_published_lists_name_for_name(protocol, folder):
    lists = published(folder)
    names = [name for part in lists.values() for name in part]
    by_rule = {split: {name for name in names if RULES[protocol](name) == split} for split in lists}
    assert by_rule == {split: set(part) for split, part in lists.items()}
    sizes = next(p.sizes for p in PROTOCOLS if p.name == protocol)
    assert {split: len(part) for split, part in by_rule.items()} == sizes


def test_the_training_subjects_of_120_are_those_of_60_and_more():
    added = set()
    for first, last in re.findall("([0-9]+)(?:-([0-9]+))?", ADDED):
        added |= set(range(int(first), int(last or first) + 1))
    training_60 = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    subjects = range(1, 107)
    expected = {("cs", 17): training_60, ("csub", 17): training_60 | added, ("csub", 18): training_60 | added}
    for (rule, setup), training in expected.items():
        assert {n for n in subjects if RULES[rule](f"S{setup:03d}C001P{n:03d}R001A001") == "train"} == training
    assert len(training_60 | added) == 53


def test_cross_setup_trains_on_even_set_ups_and_protocols_of_60_have_no_clip_of_the_others():
    splits = [RULES["cset"](f"S{setup:03d}C002P003R001A061") for setup in range(1, 33)]
    assert splits == ["validation", "train"] * 16
    assert RULES["cs"]("S018C001P001R001A061") is None
    assert RULES["cv"]("S032C002P001R001A061") is None


@pytest.fixture
def both_parts(raw):
    """One frame of depth of 36 clips: set-ups of 60 and 120, cameras 1 to 3, subjects of each kind."""
    for setup, camera, subject in itertools.product((1, 2, 18, 19), (1, 2, 3), (1, 3, 103)):
        action = 61 + subject % 60 if setup >= 18 else 1 + subject % 60
        ntu.write_depth(raw.root, f"S{setup:03d}C{camera:03d}P{subject:03d}R001A{action:03d}", 1)
    return raw


def names(raw, split):
    return [clip.name for clip in open_split("ntu_rgbd", raw.data_dir, split)]


def test_prepared_protocols_share_their_clips(both_parts):
    info = both_parts.build("ntu_rgbd")
    splits = [f"{protocol}_{split}" for protocol in ("cs", "cv", "csub", "cset") for split in ("train", "validation")]
    assert list(info.clips) == splits
    everything = {path.name for path in (both_parts.root / "nturgb+d_depth_masked").iterdir()}
    expected = {
        "cs_train": {n for n in everything if n[:4] < "S018" and "P001" in n},
        "cs_validation": {n for n in everything if n[:4] < "S018" and "P001" not in n},
        "cv_train": {n for n in everything if n[:4] < "S018" and "C001" not in n},
        "cv_validation": {n for n in everything if n[:4] < "S018" and "C001" in n},
        "csub_train": {n for n in everything if "P003" not in n},
        "csub_validation": {n for n in everything if "P003" in n},
        "cset_train": {n for n in everything if n[:4] in ("S002", "S018")},
        "cset_validation": {n for n in everything if n[:4] in ("S001", "S019")},
    }
    for split, found in expected.items():
        assert sorted(names(both_parts, split)) == sorted(found)
    stored = open_split("ntu_rgbd", both_parts.data_dir, "cset_train+cset_validation")
    assert len(stored) == len(everything) == 36  # no clip is stored twice


def test_a_protocol_of_60_has_60_classes_in_a_data_set_of_120(both_parts):
    assert len(both_parts.build("ntu_rgbd").class_names) == 120
    assert len(set(CLASS_NAMES)) == 120
    assert open_split("ntu_rgbd", both_parts.data_dir, "cs_train").class_names == CLASS_NAMES[:60]
    assert open_split("ntu_rgbd", both_parts.data_dir, "csub_train").class_names == CLASS_NAMES
    assert open_split("ntu_rgbd", both_parts.data_dir, None).split == "cs_train"


def test_without_the_other_set_ups_there_is_no_protocol_of_120(raw, caplog):
    ntu.write_depth(raw.root, "S001C001P001R001A001", 1)
    ntu.write_depth(raw.root, "S001C002P003R001A001", 1)
    with caplog.at_level("WARNING", logger="rgbd_jax"):
        assert list(raw.build("ntu_rgbd").clips) == ["cs_train", "cs_validation", "cv_train", "cv_validation"]
    assert "cs_train has 1 clips here; in the whole data set it has 40320" in caplog.messages
    with pytest.raises(ValueError, match="there is no split 'csub_train'"):
        open_split("ntu_rgbd", raw.data_dir, "csub_train")
