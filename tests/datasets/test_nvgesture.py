"""NvGesture as it comes (videos of recordings, lists of gestures) and in the reference's layout (frames)."""

import cv2
import pytest

from tests.datasets.conftest import jpeg, video_frames
from tests.datasets.test_split_lists import SHARED_SPLITS, needs_shared_splits

DATASET = "nvgesture"
LST = "nvgesture_{}_correct_cvpr2016_v2.lst"


def line(name, label, color="3:7", depth="3:7"):
    extra = "duo_left:duo_left:5:11"
    return f"path:./Video_data/{name} depth:sk_depth:{depth} color:sk_color:{color} {extra} label:{label}"


TRAIN = [line("class_01/subject3_r0", 1), line("class_25/subject3_r0", 24, "0:4", "5:9").replace(" ", "\t")]
TEST = [line("class_02/subject13_r1", 2) + " "]


@pytest.fixture
def recordings(raw):
    """Three recordings of 12 frames, each frame with a block of its own place."""
    for name in ("class_01/subject3_r0", "class_25/subject3_r0", "class_02/subject13_r1"):
        raw.video(f"Video_data/{name}/sk_color.avi", frames=12)
        raw.video(f"Video_data/{name}/sk_depth.avi", frames=12, grey=True)
    raw.lists(pattern=LST, train=TRAIN, test=TEST)
    return raw


def test_the_frames_of_the_gesture_alone_are_kept(recordings):
    info = recordings.build()
    assert info.clips == {"train": 2, "validation": 1}
    assert info.modalities == ("rgb", "depth")
    first, second = recordings.records()
    assert (first.name, first.label) == ("train/class_01/subject3_r0", 0)
    assert (second.name, second.label) == ("train/class_25/subject3_r0", 23)  # the label counts, not the folder
    for clip, color, depth in ((first, slice(3, 7), slice(3, 7)), (second, slice(0, 4), slice(5, 9))):
        folder = recordings.root / "Video_data" / clip.name.removeprefix("train/")
        assert list(clip.frames["rgb"]) == list(map(jpeg, video_frames(folder / "sk_color.avi")[color]))
        grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in video_frames(folder / "sk_depth.avi")[depth]]
        assert list(clip.frames["depth"]) == list(map(jpeg, grey))
    (test,) = recordings.records("validation")
    assert (test.name, test.label, len(test.frames["rgb"])) == ("test/class_02/subject13_r1", 1, 4)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (line("class_25/subject3_r0", 26), "expected a label from 1 to 25, found '26'"),
        (line("class_25/subject3_r0", 25, "3:7", "3:8"), "expected as many .* found 4 rgb and 5 depth frames"),
        (line("class_25/subject3_r0", 25, "7:3"), "expected color:VIDEO:START:END with START before END"),
        (line("class_25/subject3_r0", 25, "-3:1"), "expected color:VIDEO:START:END"),
        ("class_25/subject3_r0 80 24", "expected a field path:… and color:… and depth:… and label:…, found none"),
        (line("../class_25/subject3_r0", 25), "expected a path below the folder of the clips, found './Video_data/../"),
        (line("class_25/subject4_r0", 25), "there is no clip .*subject4_r0/sk_color.avi or .*/sk_depth.avi"),
    ],
)
def test_wrong_lines_are_named(recordings, bad, expected):
    recordings.lists(pattern=LST, train=[TRAIN[0], bad])
    recordings.refused(rf"nvgesture_train_correct_cvpr2016_v2\.lst:2: {expected}")


def test_videos_that_are_too_short_or_cannot_be_decoded_and_recordings_without_their_lists(recordings):
    recordings.lists(pattern=LST, train=[TRAIN[0], line("class_25/subject3_r0", 25, "3:13", "2:12")])
    recordings.refused(r"class_25/subject3_r0/sk_color\.avi: expected 13 frames, found 12")
    (recordings.root / "Video_data/class_25/subject3_r0/sk_color.avi").write_bytes(b"RIFF")
    recordings.refused(r"sk_color\.avi: cannot be opened as a video .*; is it empty, truncated or damaged\?")
    (recordings.root / LST.format("test")).unlink()
    recordings.refused(r"test_correct_cvpr2016_v2\.lst: no such list; without it the frames")


def test_whole_recordings_in_the_layout_of_the_reference_are_refused(raw):
    """All frames instead of those of the gesture cost users of the reference ten points of accuracy."""
    raw.clip("train/class_01/s1_r0", frames=90)
    for count in (80, 90):
        raw.lists("dataset_splits", train=[f"train/class_01/s1_r0 {count} 0"])
        raw.refused(
            rf"rgb/train/class_01/s1_r0: holds 90 frames, of which .*train\.txt:1 uses {count}; expected at most 80"
        )
    raw.video("rgb/train/class_01/s2_r0.avi")
    raw.video("depth/train/class_01/s2_r0.avi")
    raw.lists("dataset_splits", train=["train/class_01/s2_r0 10 0"])
    raw.refused(r"s2_r0\.avi: is a whole recording; expected a folder of the gesture's frames")


LISTED_TRAIN = ["train/class_01/s1_r0 4 0", "train/class_25/s1_r0 4 24"]
LISTED_VALID = ["test/class_02/s2_r0 3 1"]


@pytest.fixture
def frames(raw):
    """Three clips in the reference's layout, still without lists."""
    for line in LISTED_TRAIN + LISTED_VALID:
        raw.clip(line.split()[0])
    return raw


@pytest.mark.parametrize("folders", [["."], ["rgb", "depth"]])
def test_lists_of_either_place_are_read(frames, folders):
    for folder in folders:
        lines = reversed(LISTED_TRAIN) if folder == "depth" else LISTED_TRAIN
        frames.lists(f"dataset_splits/{folder}", train=lines, valid=LISTED_VALID)
    info = frames.build()
    assert info.clips == {"train": 2, "validation": 1}
    assert len(info.class_names) == 25
    labels = [("train/class_01/s1_r0", 0), ("train/class_25/s1_r0", 24)]
    assert [(clip.name, clip.label) for clip in frames.records()] == labels
    (valid,) = frames.records("validation")
    for modality in ("rgb", "depth"):
        files = [frames.root / modality / valid.name / f"{i:06d}.jpg" for i in range(3)]
        assert list(valid.frames[modality]) == [file.read_bytes() for file in files]


@pytest.mark.parametrize("frame", [0, 1, 3])
def test_a_frame_that_is_missing_by_its_number(frames, frame):
    frames.lists("dataset_splits", train=LISTED_TRAIN)
    folder = frames.root / "depth/train/class_25/s1_r0"
    (folder / f"{frame:06d}.jpg").rename(folder / "000009.jpg")
    frames.refused(rf"depth/train/class_25/s1_r0: frame {frame} is missing: frames count by ones from 0")


@pytest.mark.parametrize(
    ("lists", "place"),
    [
        ({"train": LISTED_TRAIN[:1], "valid": LISTED_VALID}, r"rgb/train\.txt:2"),
        ({"train": [*LISTED_TRAIN, "x 4 0"], "valid": LISTED_VALID}, r"depth/train\.txt:3"),
        ({"train": LISTED_TRAIN}, r"rgb/valid\.txt:1"),
    ],
)
def test_lists_of_the_modalities_that_differ(frames, lists, place):
    frames.lists("dataset_splits/rgb", train=LISTED_TRAIN, valid=LISTED_VALID)
    frames.lists("dataset_splits/depth", **lists)
    frames.refused(f"{place}: no such line in")


@needs_shared_splits
def test_the_published_lists_find_every_clip(raw):
    frames = raw.root / "frames"
    frames.mkdir()
    for i in range(80):
        (frames / f"{i:06d}.jpg").touch()
    (raw.root / "dataset_splits").symlink_to((SHARED_SPLITS / "NvGesture").resolve())
    lines = [line.split() for file in (raw.root / "dataset_splits" / "rgb").iterdir() for line in file.open()]
    for modality in ("rgb", "depth"):
        for path, _, _ in lines:
            (raw.root / modality / path).parent.mkdir(parents=True, exist_ok=True)
            (raw.root / modality / path).symlink_to(frames)
    (raw.root / "depth" / lines[7][0]).unlink()
    error = raw.refused(f"there is no clip {raw.root}/depth/{lines[7][0]}; it is in rgb only")
    assert len(error.problems) == 1  # all other clips of the lists were found, with all of their 80 frames
