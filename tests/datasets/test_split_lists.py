"""The reader of split lists: published lists, lists written at random, lists with faults."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.split_lists import find_splits, read_split_list

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
SHARED_SPLITS = SHARED / "splits"
needs_shared_splits = pytest.mark.skipif(not SHARED_SPLITS.is_dir(), reason="the published split lists are not here")

MODALITIES = ("rgb", "depth")
PUBLISHED = {  # folder -> classes, clips by list
    "NTU-RGBD/@CS": (60, {"train": 40320, "valid": 16560}),
    "NTU-RGBD/@CV": (60, {"train": 37920, "valid": 18960}),
    **{f"NvGesture/{modality}": (25, {"train": 1050, "valid": 482}) for modality in MODALITIES},
    **{f"THU-READ/@CS{k}/{m}": (40, {"train": 720, "valid": 240}) for k in (1, 2, 3, 4) for m in MODALITIES},
    **{f"IsoGD/{modality}": (249, {"train": 35876, "valid": 5784, "test": 6271}) for modality in MODALITIES},
}


def read(file: Path, **options) -> list:
    """Reads a list without faults."""
    problems = []
    clips = read_split_list(file, problems, **options)
    assert not problems
    return clips


def write(folder: Path, *lines: str, name: str = "train.txt") -> Path:
    file = folder / name
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@needs_shared_splits
@pytest.mark.parametrize("folder", PUBLISHED)
def test_published_lists_are_read_whole(folder):
    num_classes, counts = PUBLISHED[folder]
    for name, count in counts.items():
        clips = read(SHARED_SPLITS / folder / f"{name}.txt", num_classes=num_classes)
        assert len(clips) == count
        assert {clip.label for clip in clips} == set(range(num_classes))
        assert not any(set(clip.name) & set(" \t") for clip in clips)
        assert min(clip.frame_count for clip in clips) > 1


blanks = st.text(" \t", max_size=3)
gaps = st.text(" \t", min_size=1, max_size=3)
paths = st.lists(st.text("ab_@-1é", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)
clips = st.tuples(paths, st.integers(1, 999), st.integers(0, 248))


@given(
    clips=st.lists(clips, min_size=1, max_size=5, unique_by=lambda clip: clip[0]),
    before=blanks,
    gap=gaps,
    after=blanks,
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
)
def test_blanks_and_line_ends_do_not_matter(tmp_path_factory, clips, before, gap, after, end):
    file = tmp_path_factory.mktemp("lists") / "train.txt"
    file.write_bytes("".join(f"{before}{gap.join(map(str, clip))}{after}{end}" for clip in clips).encode())
    assert [(clip.name, clip.frame_count, clip.label) for clip in read(file)] == clips
    file.write_bytes(b"\xef\xbb\xbfa 5 0\n\nb 6 300\n")  # after a byte order mark
    assert [(clip.name, clip.where) for clip in read(file)] == [("a", f"{file}:1"), ("b", f"{file}:3")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("b 5", "`path frame_count label`"),
        ("b 5 1 extra", "`path frame_count label`"),
        ("b,5,1", "`path frame_count label`"),
        ("b 5 1.0", "two whole numbers"),
        ("b 5_0 1", "two whole numbers"),
        ("b -3 1", "frame count from 1 to 20000, found -3"),
        ("b 5 -1", "label from 0 to 6, found -1"),
        ("b 5 7", "label from 0 to 6, found 7"),
        ("/b 5 1", "path below the folder"),
        ("../b 5 1", "path below the folder"),
        ("a 5 1", "names a a second time; the first is"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, line, expected):
    file = write(tmp_path, "a 5 0", line, "c 5 6")
    problems = []
    assert [clip.name for clip in read_split_list(file, problems, num_classes=7)] == ["a", "c"]
    (problem,) = problems
    assert problem.where == f"{file}:2"
    assert expected in problem.what
    assert problem.skippable


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a 5 0\ngr\u00fcn 5 1\n".encode("latin-1"), r"train\.txt:2: is not UTF-8"),
        ("a 5 0\ngr\u00fcn 5 1\n".encode("utf-16"), r"train\.txt:1: is not UTF-8"),
        (b"\n \n", r"train\.txt: names nothing"),
    ],
)
def test_a_list_that_cannot_be_read_is_an_error_that_cannot_be_skipped(tmp_path, content, expected):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(RawDataError, match=expected) as error:
        read_split_list(tmp_path / "train.txt", [])
    assert "skip_bad_clips" not in str(error.value)


def test_valid_and_val_stand_for_validation_and_one_split_has_one_list(tmp_path):
    train, valid = write(tmp_path, "a 5 0"), write(tmp_path, "b 5 0", name="valid.txt")
    write(tmp_path, "x 1 1", name="notes.txt")
    assert find_splits(tmp_path) == {"train": train, "validation": valid}
    write(tmp_path, "a 5 0", name="validation.txt")
    with pytest.raises(RawDataError, match=r"validation\.txt and valid\.txt both stand for split validation"):
        find_splits(tmp_path)
