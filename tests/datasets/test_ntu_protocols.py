"""The protocols of NTU RGB+D: the rules against the published lists, name for name, and on prepared clips."""

import itertools
import re

import pytest
from rgbd_jax.datasets.ntu_rgbd.builder import CLASS_NAMES, PROTOCOLS

from rgbd_jax.data.source import open_split
from tests.datasets.test_split_lists import SHARED_SPLITS, needs_shared_splits, read
from tests.made_raw_data import ntu_depth

DATASET = "ntu_rgbd"
RULES = {protocol.name: protocol.split_of for protocol in PROTOCOLS}
ADDED = "45, 46, 47, 49, 50, 52-59, 70, 74, 78, 80-86, 89, 91-95, 97, 98, 100, 103"


@needs_shared_splits
@pytest.mark.parametrize("protocol", PROTOCOLS[:2], ids=["cs", "cv"])
def test_the_rules_give_the_published_lists_name_for_name(protocol):
    folder = SHARED_SPLITS / "NTU-RGBD" / protocol.lists[0]
    for split, file in {"train": "train.txt", "validation": "valid.txt"}.items():
        lines = read(folder / file)
        assert len(lines) == len({line.name for line in lines}) == protocol.sizes[split]
        for line in lines:
            name = line.name.removesuffix("_rgb")
            assert (protocol.split_of(name), int(name[17:20]) - 1) == (split, line.label)


def test_the_training_subjects_of_120_are_those_of_60_and_more():
    added = set()
    for first, last in re.findall("([0-9]+)(?:-([0-9]+))?", ADDED):
        added |= set(range(int(first), int(last or first) + 1))
    training_60 = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    expected = {("cs", 17): training_60, ("csub", 17): training_60 | added, ("csub", 18): training_60 | added}
    for (rule, setup), training in expected.items():
        names = {n: f"S{setup:03d}C001P{n:03d}R001A001" for n in range(1, 107)}
        assert {n for n, name in names.items() if RULES[rule](name) == "train"} == training
    assert len(training_60 | added) == 53


def test_cross_setup_trains_on_even_set_ups_and_protocols_of_60_have_no_clip_of_the_others():
    splits = [RULES["cset"](f"S{setup:03d}C002P003R001A061") for setup in range(1, 33)]
    assert splits == ["validation", "train"] * 16
    assert RULES["cs"]("S018C001P001R001A061") is None
    assert RULES["cv"]("S032C002P001R001A061") is None


def test_prepared_protocols_share_their_clips_and_have_their_own_classes(raw):
    """One frame of depth of 36 clips: set-ups of 60 and 120, cameras 1 to 3, subjects of each kind."""
    for setup, camera, subject in itertools.product((1, 2, 18, 19), (1, 2, 3), (1, 3, 103)):
        action = 61 + subject % 60 if setup >= 18 else 1 + subject % 60
        ntu_depth(raw.root, f"S{setup:03d}C{camera:03d}P{subject:03d}R001A{action:03d}", 1)
    info = raw.build()
    everything = {path.name for path in (raw.root / "nturgb+d_depth_masked").iterdir()}
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
    assert list(info.clips) == list(expected)
    for split, names in expected.items():
        opened = open_split(DATASET, raw.data_dir, split)
        assert sorted(opened.names) == sorted(names)
        assert opened.class_names == CLASS_NAMES[: 60 if split.startswith(("cs_", "cv_")) else 120]
    assert len(open_split(DATASET, raw.data_dir, "cset_train+cset_validation")) == 36  # no clip is stored twice
    assert len(info.class_names) == len(set(CLASS_NAMES)) == 120
    assert open_split(DATASET, raw.data_dir, None).split == "cs_train"


def test_without_the_other_set_ups_there_is_no_protocol_of_120(raw, caplog):
    ntu_depth(raw.root, "S001C001P001R001A001", 1)
    ntu_depth(raw.root, "S001C002P003R001A001", 1)
    with caplog.at_level("WARNING", logger="rgbd_jax"):
        assert list(raw.build().clips) == ["cs_train", "cs_validation", "cv_train", "cv_validation"]
    assert "cs_train has 1 clips here; in the whole data set it has 40320" in caplog.messages
    with pytest.raises(ValueError, match="there is no split 'csub_train'"):
        raw.records("csub_train")
