"""NvGesture as it comes (videos of recordings, lists of gestures) and in the reference's layout (frames)."""

from pathlib import Path

import cv2
import pytest

from rgbd_jax.ingest.problems import RawDataError
from tests.datasets.test_split_lists import SHARED_SPLITS, needs_shared_splits

LST = "nvgesture_{}_correct_cvpr2016_v2.lst"


def line(name, label, color="3:7", depth="3:7"):
    extra = "duo_left:duo_left:5:11"
    return f"path:./Video_data/{name} depth:sk_depth:{depth} color:sk_color:{color} {extra} label:{label}"


TRAIN = [line("class_01/subject3_r0", 1), line("class_25/subject3_r0", 24, "0:4", "5:9").replace(" ", "\t")]
TEST = [line("class_02/subject13_r1", 2) + " "]


def write_lists(raw, train=TRAIN, test=TEST):
    for split, lines in (("train", train), ("test", test)):
        (raw.root / LST.format(split)).write_text("".join(f"{each}\n" for each in lines))


@pytest.fixture
def recordings(raw):
    """Three recordings of 12 frames, each frame with a block of its own place."""
    for name in ("class_01/subject3_r0", "class_25/subject3_r0", "class_02/subject13_r1"):
        raw.video(f"Video_data/{name}/sk_color.avi", frames=12)
        raw.video(f"Video_data/{name}/sk_depth.avi", frames=12, grey=True)
    write_lists(raw)
    return raw


def jpeg_frames(file: Path, first: int, stop: int, grey: bool) -> list[bytes]:
    capture = cv2.VideoCapture(str(file))
    frames = []
    while (read := capture.read())[0]:
        image = cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY) if grey else read[1]
        frames.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return frames[first:stop]


def test_the_frames_of_the_gesture_alone_are_kept(recordings):
    info = recordings.build("nvgesture")
    assert info.clips == {"train": 2, "validation": 1}
    assert info.modalities == ("rgb", "depth")
    first, second = recordings.records("train", "nvgesture")
    assert [(first.name, first.label), (second.name, second.label)] == [
        ("train/class_01/subject3_r0", 0),
        ("train/class_25/subject3_r0", 23),  # the label counts, not the folder
    ]
    videos = recordings.root / "Video_data"
    for clip, color, depth in ((first, (3, 7), (3, 7)), (second, (0, 4), (5, 9))):
        folder = videos / clip.name.removeprefix("train/")
        assert list(clip.frames["rgb"]) == jpeg_frames(folder / "sk_color.avi", *color, grey=False)
        assert list(clip.frames["depth"]) == jpeg_frames(folder / "sk_depth.avi", *depth, grey=True)
    (test,) = recordings.records("validation", "nvgesture")
    assert (test.name, test.label, len(test.frames["rgb"])) == ("test/class_02/subject13_r1", 1, 4)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (line("class_01/subject3_r0", 1), "names train/class_01/subject3_r0 a second time; the first is .*lst:1"),
        (line("class_25/subject3_r0", 0), "expected a label from 1 to 25, found '0' in 'path:"),
        (line("class_25/subject3_r0", 26), "expected a label from 1 to 25, found '26'"),
        (line("class_25/subject3_r0", "one"), "expected a label from 1 to 25, found 'one'"),
        (
            line("class_25/subject3_r0", 25, "3:7", "3:8"),
            "expected as many frames of each sensor, found 4 of color and 5 of depth",
        ),
        (line("class_25/subject3_r0", 25, "7:3"), "expected color:VIDEO:START:END with START before END"),
        (line("class_25/subject3_r0", 25, "3"), "expected color:VIDEO:START:END"),
        (line("class_25/subject3_r0", 25, "-3:1"), "expected color:VIDEO:START:END"),
        (line("class_25/subject3_r0", 25).replace("depth:", "deep:"), "expected a field depth:…, found none"),
        ("class_25/subject3_r0 80 24", "expected a field path:… and color:… and depth:… and label:…, found none"),
        (line("../class_25/subject3_r0", 25), "expected a path such as ./Video_data/class_01/subject13_r0"),
        (line("class_25/subject4_r0", 25), "there is no clip .*subject4_r0/sk_color.avi or .*/sk_depth.avi"),
        (line("class_25/subject3_r0", 25, "3:20", "3:20"), ".*sk_color.avi is shorter than the 20 frames"),
        (line("class_25/subject3_r0", 25, "3:13", "2:12"), ".*sk_color.avi: expected 13 frames, found 12"),
    ],
)
def test_wrong_lines_are_named(recordings, bad, expected):
    write_lists(recordings, train=[TRAIN[0], bad])
    recordings.refused("nvgesture", rf"nvgesture_train_correct_cvpr2016_v2\.lst:2: {expected}")
    recordings.check_that_nothing_looks_prepared()


def test_a_video_that_cannot_be_decoded_and_recordings_without_their_lists(recordings):
    (recordings.root / "Video_data/class_25/subject3_r0/sk_depth.avi").write_bytes(b"RIFF")
    recordings.refused("nvgesture", r"train_correct_cvpr2016_v2\.lst:2: .*sk_depth\.avi: holds no frame")
    (recordings.root / LST.format("test")).unlink()
    recordings.refused("nvgesture", r"test_correct_cvpr2016_v2\.lst: no such list; without it the frames")


def test_whole_recordings_in_the_layout_of_the_reference_are_refused(raw):
    """All frames instead of those of the gesture cost users of the reference ten points of accuracy."""
    raw.clip("train/class_01/s1_r0", frames=90)
    raw.lists("dataset_splits", train=["train/class_01/s1_r0 80 0"])
    raw.refused("nvgesture", r"rgb/train/class_01/s1_r0: holds 90 frames, more than the 80 of a gesture")
    raw.lists("dataset_splits", train=["train/class_01/s1_r0 90 0"])
    raw.refused("nvgesture", r"train\.txt:1: expected at most 80 frames, as many as a gesture has, found 90")
    raw.video("rgb/train/class_01/s2_r0.avi")
    raw.video("depth/train/class_01/s2_r0.avi")
    raw.lists("dataset_splits", train=["train/class_01/s2_r0 10 0"])
    raw.refused("nvgesture", r"s2_r0\.avi: is a whole recording; expected a folder of the gesture's frames")


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
    info = frames.build("nvgesture")
    assert info.clips == {"train": 2, "validation": 1}
    assert len(info.class_names) == 25
    train = frames.records(dataset="nvgesture")
    assert [(clip.name, clip.label) for clip in train] == [("train/class_01/s1_r0", 0), ("train/class_25/s1_r0", 24)]
    (valid,) = frames.records("validation", "nvgesture")
    for modality in ("rgb", "depth"):
        files = [frames.root / modality / valid.name / f"{i:06d}.jpg" for i in range(3)]
        assert list(valid.frames[modality]) == [file.read_bytes() for file in files]


@pytest.mark.parametrize("frame", [0, 1, 3])
def test_a_frame_that_is_missing_by_its_number(frames, frame):
    frames.lists("dataset_splits", train=LISTED_TRAIN)
    folder = frames.root / "depth" / "train/class_25/s1_r0"
    (folder / f"{frame:06d}.jpg").rename(folder / "000009.jpg")
    frames.refused("nvgesture", rf"s1_r0/{frame:06d}\.jpg: is missing \(1 of 4 frames\)")


@pytest.mark.parametrize(
    ("train", "place"), [(LISTED_TRAIN[:1], r"rgb/train\.txt:2"), ([*LISTED_TRAIN, "x 4 0"], r"depth/train\.txt:3")]
)
def test_lists_of_the_modalities_that_differ(frames, train, place):
    frames.lists("dataset_splits/rgb", train=LISTED_TRAIN)
    frames.lists("dataset_splits/depth", train=train)
    frames.refused("nvgesture", f"{place}: no such line in")


def test_a_split_that_one_modality_lacks(frames):
    frames.lists("dataset_splits/rgb", train=LISTED_TRAIN, valid=LISTED_VALID)
    frames.lists("dataset_splits/depth", train=LISTED_TRAIN)
    frames.refused("nvgesture", r"depth: expected lists of train and validation .*, found train$")


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
    with pytest.raises(RawDataError) as error:
        raw.build("nvgesture")
    (problem,) = error.value.problems  # all other clips of the lists were found, with all of their 80 frames
    assert f"there is no clip {raw.root}/depth/{lines[7][0]}; it is in rgb only" in str(problem)
