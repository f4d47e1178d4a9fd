"""IsoGD: videos with its own lists, frames in the reference's layout, the published lists."""

import cv2
import pytest
from rgbd_jax.datasets.isogd.builder import name_of

from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.split_lists import find_lists, read_lists
from tests.datasets.test_split_lists import PUBLISHED, SHARED_SPLITS, needs_shared_splits

OWN = {
    "train": ["train/001/M_00001.avi train/001/K_00001.avi 26", "train/001/M_00002.avi train/001/K_00002.avi 249"],
    "valid": ["valid/001/M_00001.avi valid/001/K_00001.avi 1"],
    "test": ["test/002/M_00201.avi test/002/K_00201.avi 7"],
}


def own_lists(raw, lists=OWN, pattern="{}_list"):
    raw.lists(
        (raw.root / pattern.format("train")).parent, **{pattern.format(s).split("/")[-1]: lists[s] for s in lists}
    )


@pytest.fixture
def videos(raw):
    for line in [line for lines in OWN.values() for line in lines]:
        rgb, depth, _ = line.split()
        raw.video(rgb, frames=6)
        raw.video(depth, frames=6, grey=True)
    return raw


@pytest.mark.parametrize("pattern", ["{}_list", "IsoGD_labels/{}"])
def test_videos_with_their_own_lists(videos, pattern):
    own_lists(videos, pattern=pattern)
    info = videos.build("isogd")
    assert info.clips == {"train": 2, "validation": 1, "test": 1}
    assert len(info.class_names) == 249
    clips = videos.records("train", "isogd")
    assert [(clip.name, clip.label) for clip in clips] == [("train/001/M_00001", 25), ("train/001/M_00002", 248)]
    (clip,) = videos.records("test", "isogd")
    assert (clip.name, clip.label) == ("test/002/M_00201", 6)
    for modality, file in (("rgb", "M_00201.avi"), ("depth", "K_00201.avi")):
        capture = cv2.VideoCapture(str(videos.root / "test/002" / file))
        for content in clip.frames[modality]:
            image = capture.read()[1]
            if modality == "depth":
                image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            assert content == cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        assert not capture.read()[0]


def reference_layout(raw):
    for name in ("train/001/{}_00001", "train/001/{}_00002", "valid/001/{}_00001"):
        for modality, letter in (("rgb", "M"), ("depth", "K")):
            raw.clip(name.format(letter), frames=4, **{"rgb": None, "depth": None, modality: "colour"})
    for modality, letter in (("rgb", "M"), ("depth", "K")):
        train = [f"train/001/{letter}_00001 4 25", f" train/001/{letter}_00002 3 0 "]
        raw.lists(f"dataset_splits/{modality}", train=train, valid=[f"valid/001/{letter}_00001 4 248"])


def test_frames_in_the_layout_of_the_reference(raw):
    reference_layout(raw)
    assert raw.build("isogd").clips == {"train": 2, "validation": 1}
    second = raw.records("train", "isogd")[1]
    assert (second.name, second.label) == ("train/001/M_00002", 0)
    for modality, letter in (("rgb", "M"), ("depth", "K")):
        folder = raw.root / modality / "train/001" / f"{letter}_00002"
        assert list(second.frames[modality]) == [(folder / f"{i:06d}.jpg").read_bytes() for i in range(3)]


def test_videos_with_the_lists_of_the_reference(videos):
    videos.lists("dataset_splits/rgb", train=["train/001/M_00001 4 25"], valid=["valid/001/M_00001 6 0"])
    own_lists(videos, {"test": ["nonsense"]})  # is not read
    videos.build("isogd")
    (clip,) = videos.records("train", "isogd")
    assert {modality: len(frames) for modality, frames in clip.frames.items()} == {"rgb": 4, "depth": 4}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train/001/M_00002.avi train/001/K_00002.avi", "expected `M_path K_path label`"),
        ("train/001/M_00002.avi train/001/K_00002.avi 0", "expected a label from 1 to 249, found '0'"),
        ("train/001/M_00002.avi train/001/K_00002.avi 250", "expected a label from 1 to 249, found '250'"),
        ("train/001/M_00002.avi train/001/K_00001.avi 3", "expected the same clip twice, as M_ and as K_"),
        ("train/001/K_00002.avi train/001/M_00002.avi 3", "expected the same clip twice, as M_ and as K_"),
        ("train/001/00002.avi train/001/00002.avi 3", "expected a path such as train/001/M_00001"),
        ("../M_00002.avi ../K_00002.avi 3", "expected a path below the data set's folder"),
        ("train/001/M_00001.avi train/001/K_00001.avi 26", "names train/001/M_00001 a second time"),
        ("train/001/M_00009.avi train/001/K_00009.avi 26", "there is no clip .*/M_00009 or .*/K_00009"),
    ],
)
def test_wrong_lines_are_named(videos, line, expected):
    own_lists(videos, {**OWN, "train": [OWN["train"][0], line]})
    videos.refused("isogd", rf"train_list\.txt:2: {expected}")


def test_a_list_without_labels_cannot_be_skipped(videos):
    own_lists(videos, {**OWN, "valid": ["valid/001/M_00001.avi valid/001/K_00001.avi"]})
    with pytest.raises(RawDataError, match=r"valid_list\.txt:1: has no labels") as error:
        videos.build("isogd", skip_bad_clips=True)
    assert "skip_bad_clips" not in str(error.value)


def test_depth_that_is_missing_or_shorter(videos):
    own_lists(videos)
    (videos.root / "train/001/K_00001.avi").unlink()
    videos.refused("isogd", r"train_list\.txt:1: there is no clip .*K_00001; it is in rgb only")
    videos.video("train/001/K_00001.avi", frames=5, grey=True)
    videos.refused("isogd", r"train_list\.txt:1: expected as many depth .* found 6 rgb and 5 depth")


def test_no_lists_and_no_clips(raw):
    raw.refused("isogd", r"expected lists \(train_list\.txt or IsoGD_labels/train\.txt, and so on\)")
    own_lists(raw)
    raw.refused("isogd", "none of the 4 clips of the lists is there", FileNotFoundError)


@needs_shared_splits
def test_the_published_lists_are_read_whole():
    problems = []
    folders = find_lists(SHARED_SPLITS / "IsoGD", ("rgb", "depth"))
    assert len(folders) == 2  # that they agree is checked
    candidates = read_lists(folders, problems, num_classes=249, name_of=name_of)
    assert not problems
    _, counts = PUBLISHED["IsoGD/rgb"]
    assert {split: len(each) for split, each in candidates.items()} == {
        "train": counts["train"],
        "validation": counts["valid"],
        "test": counts["test"],
    }
    first = candidates["train"][0]
    assert (first.name, first.frame_count, first.label) == ("train/001/M_00001", 55, 25)
