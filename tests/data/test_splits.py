"""The reader of split lists: real lists, lists written by chance, lists with faults."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.splits import find_split_lists, read_split_list

SHARED_SPLITS = Path(__file__).resolve().parents[2] / ".." / "shared" / "splits"
needs_shared_splits = pytest.mark.skipif(not SHARED_SPLITS.is_dir(), reason="the published split lists are not here")

MODALITIES = ("rgb", "depth")
PUBLISHED = {  # folder -> classes, clips by list
    "NTU-RGBD/@CS": (60, {"train": 40320, "valid": 16560}),
    "NTU-RGBD/@CV": (60, {"train": 37920, "valid": 18960}),
    **{f"NvGesture/{modality}": (25, {"train": 1050, "valid": 482}) for modality in MODALITIES},
    **{
        f"THU-READ/@CS{fold}/{modality}": (40, {"train": 720, "valid": 240})
        for fold in (1, 2, 3, 4)
        for modality in MODALITIES
    },
    **{f"IsoGD/{modality}": (249, {"train": 35876, "valid": 5784, "test": 6271}) for modality in MODALITIES},
}


def write(folder: Path, *lines: str, name: str = "train.txt") -> Path:
    file = folder / name
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@needs_shared_splits
@pytest.mark.parametrize("folder", PUBLISHED)
def test_published_lists_are_read_whole(folder):
    num_classes, counts = PUBLISHED[folder]
    for name, count in counts.items():
        lines, problems = read_split_list(SHARED_SPLITS / folder / f"{name}.txt", num_classes)
        assert not problems
        assert len({line.path for line in lines}) == len(lines) == count
        assert {line.label for line in lines} == set(range(num_classes))
        assert not any(set(line.path) & set(" \t") for line in lines)
        assert min(line.frame_count for line in lines) > 1


@needs_shared_splits
def test_labels_of_the_published_nvgesture_lists_count_their_class_folders_from_0():
    for name in ("train", "valid"):
        lines, _ = read_split_list(SHARED_SPLITS / "NvGesture" / "rgb" / f"{name}.txt")
        others = [line for line in lines if f"class_{line.label + 1:02d}" not in line.path]
        assert len(others) / len(lines) < 0.02  # the data set itself labels a few clips otherwise


blanks = st.text(" \t", max_size=3)
gaps = st.text(" \t", min_size=1, max_size=3)
paths = st.lists(st.text("ab_@-1é", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)
clips = st.lists(st.tuples(paths, st.integers(1, 999), st.integers(0, 248)), min_size=1, max_size=5)


@given(clips=clips, before=blanks, gap=gaps, after=blanks, end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
def test_blanks_and_line_ends_do_not_matter(tmp_path_factory, clips, before, gap, after, end):
    file = tmp_path_factory.mktemp("lists") / "train.txt"
    text = "".join(f"{before}{gap.join(map(str, clip))}{after}{end}" for clip in clips)
    file.write_bytes(text.encode())
    lines, problems = read_split_list(file)
    assert not problems
    assert [(line.path, line.frame_count, line.label) for line in lines] == clips


def test_a_line_knows_its_number_in_the_file(tmp_path):
    file = write(tmp_path, "a 5 0", "", "b 6 3")
    lines, _ = read_split_list(file)
    assert [line.where for line in lines] == [f"{file}:1", f"{file}:3"]


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeffa 5 0\n".encode())
    assert read_split_list(tmp_path / "train.txt")[0][0].path == "a"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("b", "`path frame_count label`"),
        ("b 5", "`path frame_count label`"),
        ("b 5 1 extra", "`path frame_count label`"),
        ("b,5,1", "`path frame_count label`"),
        ("b five 1", "two whole numbers"),
        ("b 5 1.0", "two whole numbers"),
        ("b 5_0 1", "two whole numbers"),
        ("b 0 1", "frame count of at least 1, found 0"),
        ("b -3 1", "frame count of at least 1, found -3"),
        ("b 5 -1", "label from 0 to 6, found -1"),
        ("b 5 7", "label from 0 to 6, found 7"),
        ("/b 5 1", "path below the folder"),
        ("../b 5 1", "path below the folder"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, line, expected):
    file = write(tmp_path, "a 5 0", line, "c 5 6")
    lines, problems = read_split_list(file, num_classes=7)
    assert [line.path for line in lines] == ["a", "c"]
    assert len(problems) == 1
    assert problems[0].where == f"{file}:2"
    assert expected in problems[0].what
    assert problems[0].one_clip


def test_without_a_number_of_classes_any_label_from_0_is_good(tmp_path):
    lines, problems = read_split_list(write(tmp_path, "a 5 0", "b 5 100", "c 5 -1"))
    assert [line.label for line in lines] == [0, 100]
    assert "label 0 or more, found -1" in str(problems[0])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_list_that_is_not_utf_8_is_an_error_with_its_line(tmp_path, encoding):
    file = tmp_path / "train.txt"
    file.write_bytes("a 5 0\ngr\u00fcn 5 1\n".encode(encoding))
    with pytest.raises(RawDataError, match=rf"train\.txt:{2 if encoding == 'latin-1' else 1}: is not UTF-8"):
        read_split_list(file)


def test_an_empty_list_is_an_error(tmp_path):
    with pytest.raises(RawDataError, match=r"train\.txt: names no clip"):
        read_split_list(write(tmp_path, "", " "))


def test_valid_and_val_stand_for_validation(tmp_path):
    train, valid = write(tmp_path, "a 5 0"), write(tmp_path, "b 5 0", name="valid.txt")
    write(tmp_path, "x 1 1", name="notes.txt")
    assert find_split_lists(tmp_path) == {"train": train, "validation": valid}


def test_two_lists_for_one_split_are_an_error(tmp_path):
    write(tmp_path, "a 5 0", name="valid.txt")
    write(tmp_path, "a 5 0", name="validation.txt")
    with pytest.raises(RawDataError, match=r"validation\.txt and valid\.txt both stand for split validation"):
        find_split_lists(tmp_path)
