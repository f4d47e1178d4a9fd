"""Everything that can be wrong with raw clips: refused with the file or line at fault, and nothing is left behind."""

import shutil

import cv2
import pytest

from tests.datasets.conftest import decoded


def test_a_missing_frame(two_clips):
    for modality in ("rgb", "depth"):
        (two_clips.root / modality / "b" / "000001.jpg").unlink()
    two_clips.lists(train=["a 4 0", "b 3 1"])
    two_clips.refuse(str(two_clips.root / "rgb" / "b"), "frame 1 is missing")


def test_fewer_frames_than_the_list_says(two_clips):
    (two_clips.root / "depth" / "b" / "000003.jpg").unlink()
    two_clips.refuse(f"{two_clips.root / 'depth' / 'b'}: expected 4 frames, found 3")


def test_other_numbers_of_frames_in_rgb_and_depth(raw, monkeypatch):
    monkeypatch.setattr("rgbd_jax.ingest.builder.read_clip", None)  # found before a frame is read
    raw.clip("train/wave/a")
    (raw.root / "rgb/train/wave/a/000003.jpg").unlink()
    raw.refuse("train/wave/a: expected as many depth frames as rgb frames, found 3 rgb and 4 depth frames")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_frame(two_clips, suffix, share):
    file = two_clips.root / "rgb" / "b" / "000002.jpg"
    if suffix == ".png":
        file.write_bytes(cv2.imencode(".png", decoded(file.read_bytes()))[1].tobytes())
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    two_clips.refuse(f"{file}: " + ("cannot be decoded: truncated or damaged" if share else "is empty"))


def test_a_frame_that_is_no_image(two_clips):
    file = two_clips.root / "depth" / "a" / "000000.jpg"
    file.write_text("not an image")
    two_clips.refuse(f"{file}: is neither JPEG nor PNG")


def test_an_empty_clip(two_clips):
    shutil.rmtree(two_clips.root / "depth" / "a")
    (two_clips.root / "depth" / "a").mkdir()
    two_clips.refuse(f"{two_clips.root / 'depth' / 'a'}: holds no frame")


def test_a_file_that_is_no_frame(two_clips):
    (two_clips.root / "rgb" / "a" / "000004.bmp").write_bytes(b"BM")
    two_clips.refuse(f"{two_clips.root}/rgb/a/000004.bmp: is no frame")


def test_two_files_of_one_frame(two_clips):
    for i in range(4):
        (two_clips.root / "rgb" / "a" / f"{i:06d}.png").write_bytes(b"")
    two_clips.refuse(f"{two_clips.root}/rgb/a: holds two files of one frame, 000000.jpg and 000000.png")


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range(two_clips, label):
    two_clips.lists(train=["a 4 0", f"b 4 {label}"], classes=["grab", "wave"])
    two_clips.refuse(f"train.txt:2: expected a label from 0 to 1, found {label}")


def test_a_line_of_the_wrong_form(two_clips):
    two_clips.lists(train=["a 4 0", "b 4"])
    two_clips.refuse("train.txt:2: expected `path frame_count label`", "'b 4'")


def test_a_clip_that_is_named_twice(two_clips):
    two_clips.lists(train=["a 4 0", "b 4 1", "a 4 1"])
    two_clips.refuse("train.txt:3: names a a second time; the first is", "train.txt:1")


@pytest.mark.parametrize(("modality", "other"), [("rgb", "depth"), ("depth", "rgb")])
def test_a_clip_in_one_modality_only(two_clips, modality, other):
    shutil.rmtree(two_clips.root / other / "b")
    two_clips.refuse(f"train.txt:2: there is no clip {two_clips.root / other / 'b'}", f"it is in {modality} only")


def test_a_clip_of_a_class_folder_in_depth_only(raw):
    raw.clip("train/wave/a")
    raw.clip("train/wave/b", rgb=None)
    raw.refuse(f"there is no clip {raw.root}/rgb/train/wave/b; it is in depth only")


def test_a_clip_that_does_not_exist(two_clips):
    two_clips.lists(train=["a 4 0", "c 4 1"])
    two_clips.refuse(f"train.txt:2: there is no clip {two_clips.root}/rgb/c or {two_clips.root}/depth/c")


def test_a_list_that_is_not_utf_8(two_clips):
    (two_clips.root / "train.txt").write_bytes(b"a 4 0\n\xff 4 1\n")
    error = two_clips.refuse("train.txt:2: is not UTF-8 text", skip_bad_clips=True)
    assert "skip_bad_clips" not in str(error)  # it would not help


def test_a_folder_and_a_video_of_one_name(two_clips):
    two_clips.video("rgb/a.avi")
    two_clips.refuse(f"{two_clips.root / 'rgb' / 'a'}: expected one folder or video, found a, a.avi")


@pytest.mark.parametrize("kind", ["grey", "16 bit"])
def test_mixed_kinds_of_depth(two_clips, kind):
    shutil.rmtree(two_clips.root / "depth" / "b")
    two_clips.clip("b", rgb=None, depth=kind)
    two_clips.refuse(str(two_clips.root / "depth" / "b" / "000000"), "the data set's frames are uint8 with 3 channels")


def test_rgb_that_is_not_coloured(raw):
    raw.clip("a", rgb="grey")
    raw.lists(train=["a 4 0"])
    raw.refuse(f"{raw.root}/rgb/a/000000.jpg: is uint8 with 1 channel; the data set's frames are uint8 with 3")


def test_a_grey_and_a_coloured_depth_video(raw):
    raw.video("depth/a.avi", grey=True)
    coloured = raw.video("depth/b.avi")
    raw.lists(train=["a 5 0", "b 5 1"])
    raw.refuse(f"{coloured}: frame 0 is coloured")


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v")])
def test_a_truncated_video(raw, suffix, codec):
    raw.video(f"rgb/train/slide/a.{suffix}", frames=16, codec=codec)
    file = raw.video(f"rgb/train/slide/b.{suffix}", frames=16, codec=codec)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    raw.refuse(f"{file}: ")


def test_a_video_that_is_shorter_than_the_list_says(raw):
    file = raw.video("rgb/a.avi")
    raw.lists(train=["a 11 0"])
    raw.refuse(f"{file}: expected 11 frames, found 10")


def test_a_video_and_a_folder_of_other_lengths(raw):
    raw.video("rgb/train/wave/a.avi", frames=5)
    raw.clip("train/wave/a", frames=4, rgb=None)
    raw.refuse("expected as many depth frames as rgb frames, found 5 rgb and 4 depth frames")


def test_folders_that_are_no_splits(raw):
    raw.clip("wave/a")
    raw.refuse("expected split lists in", "SPLIT/CLASS/CLIP", "train, validation, valid, val, test")
    raw.clip("train/wave/a")
    raw.refuse(f"{raw.root}/rgb/wave: is none of the splits")


def test_files_where_folders_are_expected(raw):
    raw.clip("train/wave/a")
    (raw.root / "rgb" / "train" / "notes.md").write_text("")
    (raw.root / "rgb" / "train" / "wave" / "b.wmv").write_text("")
    raw.refuse("notes.md: expected a folder of one class", "b.wmv: expected a folder of frames or a video")


@pytest.mark.parametrize("content", ["grab\ngrab\n", "\n"])
def test_bad_names_of_classes(two_clips, content):
    (two_clips.root / "classes.txt").write_text(content)
    two_clips.refuse("classes.txt: names")


def test_no_raw_clips(raw):
    with pytest.raises(FileNotFoundError, match="holds neither rgb/ nor depth/"):
        raw.build()
    raw.root.rmdir()
    with pytest.raises(FileNotFoundError, match=f"{raw.root}: no such folder"):
        raw.build()


def test_all_problems_are_told_together(raw):
    for i in range(30):
        raw.clip(f"c{i}", frames=1)
    raw.lists(train=[f"c{i} 2 0" for i in range(25)], test=[f"c{i} 2 0" for i in range(25, 30)])
    error = raw.refuse("30 problems", "and 10 more")
    assert len(error.problems) == 30
    assert len(str(error).splitlines()) == 23
    assert "set skip_bad_clips to leave bad clips out" in str(error)


def test_unreadable_frames_of_all_splits_are_told_together(raw):
    for i in range(4):
        raw.clip(f"c{i}")
    for i in (1, 3):
        (raw.root / "depth" / f"c{i}" / "000003.jpg").write_text("no image")
    raw.lists(train=["c0 4 0", "c1 4 0"], test=["c2 4 0", "c3 4 0"])
    assert len(raw.refuse("c1/000003.jpg", "c3/000003.jpg").problems) == 2
