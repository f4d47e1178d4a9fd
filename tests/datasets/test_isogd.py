"""IsoGD: videos with its own lists, frames in the reference's layout, the published lists."""

import cv2
import pytest
from rgbd_jax.datasets.isogd.builder import name_of

from rgbd_jax.ingest.split_lists import read_lists
from tests.datasets.conftest import jpeg, video_frames
from tests.datasets.test_split_lists import PUBLISHED, SHARED_SPLITS, needs_shared_splits

DATASET = "isogd"
OWN = {
    "train": ["train/001/M_00001.avi train/001/K_00001.avi 26", "train/001/M_00002.avi train/001/K_00002.avi 249"],
    "valid": ["valid/001/M_00001.avi valid/001/K_00001.avi 1"],
    "test": ["test/002/M_00201.avi test/002/K_00201.avi 7"],
}


def own_lists(raw, pattern="{}_list.txt", **lists):
    raw.lists(pattern=pattern, **{**OWN, **lists})


@pytest.fixture
def videos(raw):
    for line in [line for lines in OWN.values() for line in lines]:
        rgb, depth, _ = line.split()
        raw.video(rgb, frames=6)
        raw.video(depth, frames=6, grey=True)
    return raw


@pytest.mark.parametrize("pattern", ["{}_list.txt", "IsoGD_labels/{}.txt"])
def test_videos_with_their_own_lists(videos, pattern):
    own_lists(videos, pattern)
    info = videos.build()
    assert info.clips == {"train": 2, "validation": 1, "test": 1}
    assert len(info.class_names) == 249
    clips = [*videos.records(), *videos.records("test")]
    expected = [("train/001/M_00001", 25), ("train/001/M_00002", 248), ("test/002/M_00201", 6)]
    assert [(clip.name, clip.label) for clip in clips] == expected
    rgb, depth = (video_frames(videos.root / f"test/002/{letter}_00201.avi") for letter in "MK")
    assert list(clips[2].frames["rgb"]) == list(map(jpeg, rgb))
    assert list(clips[2].frames["depth"]) == [jpeg(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)) for image in depth]


def test_frames_in_the_layout_of_the_reference(raw):
    for modality, letter in (("rgb", "M"), ("depth", "K")):
        for name in ("train/001/{}_00001", "train/001/{}_00002", "valid/001/{}_00001"):
            raw.frames(f"{modality}/{name.format(letter)}")
        train = [f"train/001/{letter}_00001 4 25", f" train/001/{letter}_00002 3 0 "]
        raw.lists(f"dataset_splits/{modality}", train=train, valid=[f"valid/001/{letter}_00001 4 248"])
    assert raw.build().clips == {"train": 2, "validation": 1}
    second = raw.records()[1]
    assert (second.name, second.label) == ("train/001/M_00002", 0)
    for modality, letter in (("rgb", "M"), ("depth", "K")):
        folder = raw.root / modality / f"train/001/{letter}_00002"
        assert list(second.frames[modality]) == [(folder / f"{i:06d}.jpg").read_bytes() for i in range(3)]


def test_videos_with_the_lists_of_the_reference(videos):
    videos.lists("dataset_splits/rgb", train=["train/001/M_00001 4 25"], valid=["valid/001/M_00001 6 0"])
    own_lists(videos, test=["nonsense"])  # is not read
    videos.build()
    (clip,) = videos.records()
    assert {modality: len(frames) for modality, frames in clip.frames.items()} == {"rgb": 4, "depth": 4}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train/001/M_00002.avi train/001/K_00002.avi", "expected `M_path K_path label`"),
        ("train/001/M_00002.avi train/001/K_00002.avi 0", "expected a label from 1 to 249, found '0'"),
        ("train/001/M_00002.avi train/001/K_00002.avi 250", "expected a label from 1 to 249, found '250'"),
        ("train/001/M_00002.avi train/001/K_00002.avi one", "expected a label from 1 to 249, found 'one'"),
        ("train/001/M_00002.avi train/001/K_00001.avi 3", "expected the same clip twice, as M_ and as K_"),
        ("train/001/K_00002.avi train/001/M_00002.avi 3", "expected the same clip twice, as M_ and as K_"),
        ("train/001/00002.avi train/001/00002.avi 3", "expected a path such as train/001/M_00001"),
        ("../M_00002.avi ../K_00002.avi 3", "expected a path below the folder of the clips"),
        ("train/001/M_00009.avi train/001/K_00009.avi 26", "there is no clip .*/M_00009 or .*/K_00009"),
    ],
)
def test_wrong_lines_are_named(videos, line, expected):
    own_lists(videos, train=[OWN["train"][0], line])
    videos.refused(rf"train_list\.txt:2: {expected}")


def test_a_list_without_labels_cannot_be_skipped(videos):
    own_lists(videos, valid=["valid/001/M_00001.avi valid/001/K_00001.avi"])
    error = videos.refused(r"valid_list\.txt:1: has no labels", skip_bad_clips=True)
    assert "skip_bad_clips" not in str(error)


def test_no_lists_and_no_clips(raw):
    raw.refused(r"expected lists \(train_list\.txt or IsoGD_labels/train\.txt, and so on\)")
    own_lists(raw)
    raw.refused("none of the 4 clips of the lists is there", error=FileNotFoundError)


@needs_shared_splits
def test_the_published_lists_are_read_whole():
    problems = []
    clips = read_lists(SHARED_SPLITS / "IsoGD", problems, num_classes=249, name_of=name_of)  # both modalities agree
    assert not problems
    _, counts = PUBLISHED["IsoGD/rgb"]
    assert [len(each) for each in clips.values()] == [counts[file] for file in ("train", "valid", "test")]
    first = clips["train"][0]
    assert (first.name, first.frame_count, first.label) == ("train/001/M_00001", 55, 25)
