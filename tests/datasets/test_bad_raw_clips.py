"""Everything that can be wrong with raw clips: refused with the file or line at fault, and nothing is left behind."""

import shutil

import cv2
import pytest

from tests.datasets.conftest import RawFolder, decoded


def remove(*paths):
    def spoil(raw: RawFolder) -> None:
        for path in paths:
            file = raw.root / path
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    return spoil


def write(path, content=b""):
    def spoil(raw: RawFolder) -> None:
        (raw.root / path).parent.mkdir(exist_ok=True)
        (raw.root / path).write_bytes(content)

    return spoil


def lists(**lines):
    return lambda raw: raw.lists(**lines)


def all_of(*spoils):
    return lambda raw: [spoil(raw) for spoil in spoils]


def another_kind_of_depth(kind):
    return all_of(remove("depth/b"), lambda raw: raw.clip("b", rgb=None, depth=kind))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            all_of(remove("rgb/b/000001.jpg", "depth/b/000001.jpg"), lists(train=["a 4 0", "b 3 1"])),
            "RAW/rgb/b: frame 1 is missing: frames count by ones around it",
        ),
        (remove("depth/b/000003.jpg"), "RAW/depth/b: expected 4 frames, found 3"),
        (write("depth/a/000000.jpg", b"not an image"), "RAW/depth/a/000000.jpg: is neither JPEG nor PNG"),
        (all_of(remove("depth/a"), write("depth/a/.hidden")), "RAW/depth/a: holds no frame"),
        (write("rgb/a/000004.bmp", b"BM"), "RAW/rgb/a/000004.bmp: is no frame"),
        (write("rgb/a/000000.png"), "RAW/rgb/a: holds two files of one frame, 000000.jpg and 000000.png"),
        (lists(train=["a 4 0", "b 4 2"], classes=["x", "y"]), "train.txt:2: expected a label from 0 to 1, found 2"),
        (lists(train=["a 4 0", "b 4 1", "a 4 1"]), "train.txt:3: names a a second time; the first is RAW/train.txt:1"),
        (remove("depth/b"), "train.txt:2: there is no clip RAW/depth/b; it is in rgb only"),
        (remove("rgb/b"), "train.txt:2: there is no clip RAW/rgb/b; it is in depth only"),
        (lists(train=["a 4 0", "c 4 1"]), "train.txt:2: there is no clip RAW/rgb/c or RAW/depth/c"),
        (lambda raw: raw.video("rgb/a.avi"), "RAW/rgb/a: expected one folder or video, found a, a.avi"),
        (another_kind_of_depth("grey"), "is uint8 with 1 channel; the data set's frames are uint8 with 3 channels"),
        (another_kind_of_depth("16 bit"), "is uint16 with 1 channel; the data set's frames are uint8 with 3 channels"),
        (write("classes.txt", b"grab\ngrab\n"), "classes.txt: names 'grab' more than once"),
        (write("classes.txt", b"\n"), "classes.txt: names nothing"),
        (
            all_of(remove("rgb/a"), lambda raw: raw.clip("a", rgb="grey", depth=None)),
            "RAW/rgb/a/000000.jpg: is uint8 with 1 channel; the data set's frames are uint8 with 3",
        ),
    ],
)
def test_what_is_wrong_with_a_clip_or_a_list_is_named(two_clips, spoil, expected):
    spoil(two_clips)
    two_clips.refused(expected.replace("RAW", str(two_clips.root)))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_a_truncated_frame(two_clips, suffix, fraction):
    file = two_clips.root / "rgb" / "b" / "000002.jpg"
    if suffix == ".png":
        file.write_bytes(cv2.imencode(".png", decoded(file.read_bytes()))[1].tobytes())
    content = file.read_bytes()
    file.write_bytes(content[: int(fraction * len(content))])
    two_clips.refused(f"{file}: " + ("cannot be decoded: truncated or damaged" if fraction else "is empty"))


def test_a_grey_and_a_coloured_depth_video(raw):
    raw.video("depth/a.avi", grey=True)
    coloured = raw.video("depth/b.avi")
    raw.lists(train=["a 5 0", "b 5 1"])
    raw.refused(f"{coloured}: frame 0 is coloured")


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v")])
def test_a_truncated_video(raw, suffix, codec):
    raw.video(f"rgb/train/slide/a.{suffix}", frames=16, codec=codec)
    file = raw.video(f"rgb/train/slide/b.{suffix}", frames=16, codec=codec)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    raw.refused(f"{file}: ")


def test_videos_that_are_shorter_than_the_list_or_the_other_modality(raw):
    file = raw.video("rgb/a.avi")
    raw.lists(train=["a 11 0"])
    raw.refused(f"{file}: expected 11 frames, found 10")
    (raw.root / "train.txt").unlink()
    file.unlink()
    raw.frames("depth/train/wave/a", 4)
    raw.video("rgb/train/wave/a.avi", frames=5)
    raw.refused("expected as many depth frames as rgb frames, found 5 rgb and 4 depth frames")


def test_class_folders_that_are_not_laid_out_as_expected(raw):
    raw.clip("wave/a")
    raw.refused("expected split lists in", "SPLIT/CLASS/CLIP", "train, validation, valid, val, test")
    raw.clip("train/wave/a")
    raw.refused(f"{raw.root}/rgb/wave: is none of the splits")
    for modality in ("rgb", "depth"):
        shutil.rmtree(raw.root / modality / "wave")
    raw.clip("train/wave/c", rgb=None)
    (raw.root / "rgb" / "train" / "notes.md").write_text("")
    (raw.root / "rgb" / "train" / "wave" / "b.wmv").write_text("")
    raw.refused(
        "notes.md: expected a folder of one class",
        "b.wmv: expected a folder of frames or a video",
        f"there is no clip {raw.root}/rgb/train/wave/c; it is in depth only",
    )


def test_no_raw_clips(raw):
    raw.refused("holds neither rgb/ nor depth/", error=FileNotFoundError)
    raw.root.rmdir()
    raw.refused(f"{raw.root}: no such folder", error=FileNotFoundError)


def test_all_problems_are_reported_together(raw):
    for i in range(30):
        raw.clip(f"c{i}", frames=1)
    raw.lists(train=[f"c{i} 2 0" for i in range(25)], test=[f"c{i} 2 0" for i in range(25, 30)])
    error = raw.refused("30 problems", "and 10 more")
    assert len(error.problems) == 30
    assert len(str(error).splitlines()) == 23
    assert "set skip_bad_clips to leave bad clips out" in str(error)
    for i in (1, 26):
        (raw.root / "depth" / f"c{i}" / "000000.jpg").write_text("no image")
    raw.lists(train=["c0 1 0", "c1 1 0"], test=["c25 1 0", "c26 1 0"])
    assert len(raw.refused("c1/000000.jpg", "c26/000000.jpg").problems) == 2  # found while frames are read
