"""Jester: its own lists, lists in the reference's format, and what stops a build."""

import pytest

from tests.datasets.conftest import frame

CLASS_NAMES = [f"Gesture {chr(ord('Z') - i)}{i}" for i in range(27)]  # not in sorted order


@pytest.fixture
def jester(raw):
    for name, frames in (("34870", 3), ("56557", 4), ("9", 2), ("100", 2)):
        folder = raw.root / "20bn-jester-v1" / name
        folder.mkdir(parents=True)
        for i in range(frames):
            (folder / f"{i + 1:05d}.jpg").write_bytes(frame(f"{name}/{i}"))
    write(raw, labels=CLASS_NAMES, train=[f"34870;{CLASS_NAMES[26]}", f"56557;{CLASS_NAMES[0]}"])
    write(raw, validation=[f"9;{CLASS_NAMES[5]}"], test=["100"])
    return raw


def write(raw, **files):
    for name, lines in files.items():
        (raw.root / f"jester-v1-{name}.csv").write_text("".join(f"{line}\n" for line in lines))


def test_classes_are_numbered_as_in_labels_csv_and_frames_from_1(jester):
    info = jester.build("jester")
    assert info.clips == {"train": 2, "validation": 1}
    assert info.class_names == tuple(CLASS_NAMES)
    assert info.modalities == ("rgb",)
    clips = jester.records("train", "jester")
    assert [(clip.name, clip.label) for clip in clips] == [("34870", 26), ("56557", 0)]
    assert list(clips[0].frames["rgb"]) == [frame(f"34870/{i}") for i in range(3)]


def test_lists_in_the_format_of_the_reference_decide(jester):
    jester.lists("dataset_splits", train=["20bn-jester-v1/9 2 3", "56557 3 0"], val=["34870 3 26 "])
    assert jester.build("jester").clips == {"train": 2, "validation": 1}
    first, second = jester.records("train", "jester")
    assert (first.name, first.label) == ("9", 3)
    assert list(second.frames["rgb"]) == [frame(f"56557/{i}") for i in range(3)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("56557", r"train\.csv:2: expected `id;label`, found '56557'"),
        ("../x;Gesture Z0", r"train\.csv:2: expected `id;label`"),
        ("56557;Swiping", r"train\.csv:2: expected a label of jester-v1-labels\.csv, found 'Swiping'"),
        ("34870;Gesture Z0", r"train\.csv:2: names 34870 a second time; the first is .*train\.csv:1"),
        ("7;Gesture Z0", r"train\.csv:2: there is no clip .*20bn-jester-v1/7"),
    ],
)
def test_wrong_lines_are_named(jester, line, expected):
    write(jester, train=["34870;Gesture Z0", line])
    jester.refused("jester", expected)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (CLASS_NAMES[:-1], r"labels\.csv: expected 27 classes, found 26"),
        (
            [*CLASS_NAMES, CLASS_NAMES[3]],
            r"labels\.csv:28: names 'Gesture W3' a second time; the first is .*labels\.csv:4",
        ),
        (None, r"labels\.csv: no such file"),
    ],
)
def test_labels_that_do_not_name_27_classes(jester, labels, expected):
    if labels is None:
        (jester.root / "jester-v1-labels.csv").unlink()
    else:
        write(jester, labels=labels)
    jester.refused("jester", expected)


def test_lists_or_clips_that_are_not_there(jester):
    (jester.root / "jester-v1-validation.csv").unlink()
    jester.refused("jester", r"jester-v1-validation\.csv: no such file")
    (jester.root / "20bn-jester-v1").rename(jester.root / "clips")
    jester.refused("jester", "20bn-jester-v1: no such folder", FileNotFoundError)
