"""Jester: its own lists, lists in the reference's format, and what stops a build."""

import pytest

from tests.datasets.conftest import frame

DATASET = "jester"
CLASS_NAMES = [f"Gesture {chr(ord('Z') - i)}{i}" for i in range(27)]  # not in sorted order
CSV = {"pattern": "jester-v1-{}.csv"}


@pytest.fixture
def jester(raw):
    for name, frames in (("34870", 3), ("56557", 4), ("9", 2), ("100", 2)):
        raw.frames(f"20bn-jester-v1/{name}", frames, first=1, width=5)
    raw.lists(**CSV, labels=CLASS_NAMES, train=[f"34870;{CLASS_NAMES[26]}", f"56557;{CLASS_NAMES[0]}"])
    raw.lists(**CSV, validation=[f"9;{CLASS_NAMES[5]}"], test=["100"])
    return raw


def test_classes_are_numbered_as_in_labels_csv_and_frames_from_1(jester):
    info = jester.build()
    assert info.clips == {"train": 2, "validation": 1}
    assert info.class_names == tuple(CLASS_NAMES)
    assert info.modalities == ("rgb",)
    clips = jester.records()
    assert [(clip.name, clip.label) for clip in clips] == [("34870", 26), ("56557", 0)]
    assert list(clips[0].frames["rgb"]) == [frame(f"20bn-jester-v1/34870/{i}") for i in range(3)]


def test_lists_in_the_format_of_the_reference_decide(jester):
    jester.lists("dataset_splits", train=["20bn-jester-v1/9 2 3", "56557 3 0"], val=["34870 3 26 "])
    assert jester.build().clips == {"train": 2, "validation": 1}
    first, second = jester.records()
    assert (first.name, first.label) == ("9", 3)
    assert list(second.frames["rgb"]) == [frame(f"20bn-jester-v1/56557/{i}") for i in range(3)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("56557", r"train\.csv:2: expected `id;label`, found '56557'"),
        ("../x;Gesture Z0", r"train\.csv:2: expected `id;label`"),
        ("56557;Swiping", r"train\.csv:2: expected a label of jester-v1-labels\.csv, found 'Swiping'"),
        ("7;Gesture Z0", r"train\.csv:2: there is no clip .*20bn-jester-v1/7"),
    ],
)
def test_wrong_lines_are_named(jester, line, expected):
    jester.lists(**CSV, train=["34870;Gesture Z0", line])
    jester.refused(expected)


def test_labels_that_do_not_name_27_classes_and_what_is_not_there(jester):
    twice = r"labels\.csv:28: names 'Gesture W3' a second time; the first is .*labels\.csv:4"
    lists = {r"labels\.csv: expected 27 classes, found 26": CLASS_NAMES[:-1], twice: [*CLASS_NAMES, CLASS_NAMES[3]]}
    for expected, labels in lists.items():
        jester.lists(**CSV, labels=labels)
        jester.refused(expected)
    jester.lists(**CSV, labels=CLASS_NAMES)
    (jester.root / "jester-v1-validation.csv").unlink()
    jester.refused(r"jester-v1-validation\.csv: no such file")
    (jester.root / "20bn-jester-v1").rename(jester.root / "clips")
    jester.refused("20bn-jester-v1: no such folder", error=FileNotFoundError)
