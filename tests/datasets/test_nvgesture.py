"""NvGesture in the reference's layout: lists in `dataset_splits`, frames by their numbers."""

from pathlib import Path

import pytest

from rgbd_jax.ingest.problems import RawDataError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"

TRAIN = ["train/class_01/s1_r0 4 0", "train/class_25/s1_r0 4 24"]
VALID = ["test/class_02/s2_r0 3 1"]


@pytest.fixture
def nvgesture(raw):
    """Three clips in the reference's layout, still without lists."""
    for line in TRAIN + VALID:
        raw.clip(line.split()[0])
    return raw


@pytest.mark.parametrize("folders", [["."], ["rgb", "depth"]])
def test_lists_of_either_place_are_read(nvgesture, folders):
    for folder in folders:
        lines = reversed(TRAIN) if folder == "depth" else TRAIN
        nvgesture.lists(f"dataset_splits/{folder}", train=lines, valid=VALID)
    info = nvgesture.build("nvgesture")
    assert info.clips == {"train": 2, "validation": 1}
    assert len(info.class_names) == 25
    train = nvgesture.records(dataset="nvgesture")
    assert [(clip.name, clip.label) for clip in train] == [("train/class_01/s1_r0", 0), ("train/class_25/s1_r0", 24)]
    (valid,) = nvgesture.records("validation", "nvgesture")
    for modality in ("rgb", "depth"):
        files = [nvgesture.root / modality / valid.name / f"{i:06d}.jpg" for i in range(3)]
        assert list(valid.frames[modality]) == [file.read_bytes() for file in files]


def test_a_label_outside_the_25_classes(nvgesture):
    nvgesture.lists("dataset_splits", train=[TRAIN[0], "train/class_25/s1_r0 4 25"])
    with pytest.raises(RawDataError, match=r"dataset_splits/train\.txt:2: expected a label from 0 to 24, found 25"):
        nvgesture.build("nvgesture")


@pytest.mark.parametrize("frame", [0, 1, 3])
def test_a_frame_that_is_missing_by_its_number(nvgesture, frame):
    nvgesture.lists("dataset_splits", train=TRAIN)
    folder = nvgesture.root / "depth" / "train/class_25/s1_r0"
    (folder / f"{frame:06d}.jpg").rename(folder / "000009.jpg")
    with pytest.raises(RawDataError, match=rf"s1_r0/{frame:06d}\.jpg: is missing \(1 of 4 frames\)"):
        nvgesture.build("nvgesture")


def test_no_lists(nvgesture):
    with pytest.raises(RawDataError, match=r"dataset_splits: expected split lists \(train\.txt, .*\), found none"):
        nvgesture.build("nvgesture")


@pytest.mark.parametrize(
    ("train", "place"), [(TRAIN[:1], r"rgb/train\.txt:2"), ([*TRAIN, "x 4 0"], r"depth/train\.txt:3")]
)
def test_lists_of_the_modalities_that_differ(nvgesture, train, place):
    nvgesture.lists("dataset_splits/rgb", train=TRAIN)
    nvgesture.lists("dataset_splits/depth", train=train)
    with pytest.raises(RawDataError, match=f"{place}: no such line in"):
        nvgesture.build("nvgesture")


def test_a_split_that_one_modality_lacks(nvgesture):
    nvgesture.lists("dataset_splits/rgb", train=TRAIN, valid=VALID)
    nvgesture.lists("dataset_splits/depth", train=TRAIN)
    with pytest.raises(RawDataError, match=r"depth: expected lists of train and validation .*, found train$"):
        nvgesture.build("nvgesture")


@pytest.mark.skipif(not (SHARED / "sample_rgbd").is_dir(), reason="the two real clips are not here")
def test_the_real_clips_are_stored_whole(raw):
    for modality in ("rgb", "depth"):
        (raw.root / modality).symlink_to((SHARED / "sample_rgbd" / modality).resolve())
    raw.lists("dataset_splits", train=["subject11_r0 80 0", "subject11_r1 80 1"])
    raw.build("nvgesture")
    for clip in raw.records(dataset="nvgesture"):
        for modality, frames in clip.frames.items():
            files = [raw.root / modality / clip.name / f"{i:06d}.jpg" for i in range(80)]
            assert list(frames) == [file.read_bytes() for file in files]


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="the published split lists are not here")
def test_the_published_lists_find_every_clip(raw):
    frames = raw.root / "frames"
    frames.mkdir()
    for i in range(80):
        (frames / f"{i:06d}.jpg").touch()
    (raw.root / "dataset_splits").symlink_to((SHARED / "splits" / "NvGesture").resolve())
    lines = [line.split() for file in (raw.root / "dataset_splits" / "rgb").iterdir() for line in file.open()]
    for modality in ("rgb", "depth"):
        for path, _, _ in lines:
            (raw.root / modality / path).parent.mkdir(parents=True, exist_ok=True)
            (raw.root / modality / path).symlink_to(frames)
    (raw.root / "depth" / lines[7][0]).unlink()
    with pytest.raises(RawDataError) as error:
        raw.build("nvgesture")
    (problem,) = error.value.problems  # all other clips of the lists were found, with all of their 80 frames
    assert f"there is no clip {raw.root}/depth/{lines[7][0]}; it is in rgb only" in str(problem)
