"""A user's own clips: split lists, class folders, frames of every kind, videos."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.datasets.conftest import decoded

SAMPLE = Path(__file__).resolve().parents[2] / ".." / "shared" / "sample_rgbd"


def test_split_lists_give_clips_labels_and_order(raw):
    for path in ("x/c", "x/a", "b"):
        raw.clip(path)
    raw.lists(train=[" x/c 4 2 ", "x/a 3 0"], valid=["b 4 1"], classes=["grab", "swipe left", "wave", "point"])
    info = raw.build()
    assert info.built
    assert info.clips == {"train": 2, "validation": 1}
    assert info.class_names == ("grab", "swipe left", "wave", "point")
    assert info.modalities == ("rgb", "depth")
    assert [(clip.name, clip.label, len(clip.frames["rgb"])) for clip in raw.records()] == [
        ("x/c", 2, 4),
        ("x/a", 0, 3),
    ]
    assert [(clip.name, clip.label) for clip in raw.records("validation")] == [("b", 1)]


def test_frames_are_stored_byte_for_byte_and_a_smaller_count_takes_the_first(raw):
    raw.clip("a", frames=5)
    raw.lists(train=["a 3 0"])
    raw.build()
    (clip,) = raw.records()
    for modality, frames in clip.frames.items():
        files = sorted((raw.root / modality / "a").iterdir())
        assert list(frames) == [file.read_bytes() for file in files[:3]]


def test_class_folders_give_sorted_classes_and_clips_in_natural_order(raw):
    for path in ("train/wave/clip10", "train/wave/clip9", "train/grab/x", "val/wave/y", "val/push/z"):
        raw.clip(path)
    info = raw.build()
    assert info.class_names == ("grab", "push", "wave")
    assert info.clips == {"train": 3, "validation": 2}
    found = [(clip.name, clip.label) for clip in raw.records()]
    assert found == [("train/grab/x", 0), ("train/wave/clip9", 2), ("train/wave/clip10", 2)]


@pytest.mark.parametrize("numbers", [(0, 5, 10, 15, 25), (3, 36, 70, 103, 170), (7, 8, 9, 10, 11)])
def test_frames_follow_in_natural_order_and_may_count_otherwise_than_by_ones(raw, numbers):
    raw.clip("a", frames=5, depth=None)
    folder = raw.root / "rgb" / "a"
    contents = [file.read_bytes() for file in sorted(folder.iterdir())]
    for i, number in enumerate(numbers):
        (folder / f"{i:06d}.jpg").rename(folder / f"frame{number}.jpg")
    raw.lists(train=["a 5 0"])
    assert raw.build().modalities == ("rgb",)
    assert list(raw.records()[0].frames["rgb"]) == contents


@pytest.mark.parametrize(
    ("kind", "dtype", "channels"), [("16 bit", np.uint16, 1), ("grey", np.uint8, 1), ("colour", np.uint8, 3)]
)
def test_the_features_state_the_kind_of_depth(raw, kind, dtype, channels):
    raw.clip("a", depth=kind)
    raw.lists(train=["a 4 0"])
    image = tfds.builder_from_directory(raw.build().directory).info.features["depth"].feature
    assert image.np_dtype == dtype
    assert image.shape == (None, None, channels)
    for file, stored in zip(sorted((raw.root / "depth/a").iterdir()), raw.records()[0].frames["depth"], strict=True):
        frame = decoded(stored)
        assert (frame.dtype, frame.ndim) == (dtype, 2 if channels == 1 else 3)
        np.testing.assert_array_equal(frame, decoded(file.read_bytes()))


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80")])
def test_videos_become_jpeg_frames(raw, suffix, codec):
    raw.video(f"rgb/train/slide/clip.{suffix}", codec=codec)
    raw.video(f"depth/train/slide/clip.{suffix}", codec=codec, grey=True)
    info = raw.build()
    (clip,) = raw.records()
    assert clip.name == "train/slide/clip"
    assert {modality: len(frames) for modality, frames in clip.frames.items()} == {"rgb": 10, "depth": 10}
    for i in (0, 9):
        rgb, depth = (decoded(clip.frames[modality][i]) for modality in ("rgb", "depth"))
        assert np.abs(rgb[24, 4 * i + 4] - np.array([20.0, 90.0, 230.0])).max() < 40
        assert depth.shape == (48, 64)
        assert abs(int(depth[24, 4 * i + 4]) - 200) < 20
    assert tfds.builder_from_directory(info.directory).info.features["depth"].feature.shape == (None, None, 1)


def test_a_coloured_depth_video_stays_coloured_and_goes_with_a_folder_of_rgb_frames(raw):
    raw.video("depth/a.avi")
    raw.clip("a", frames=6, depth=None)
    raw.lists(train=["a.avi 6 0"])
    raw.build()
    (clip,) = raw.records()
    assert clip.name == "a"
    assert [decoded(frame).shape for frame in clip.frames["depth"]] == [(48, 64, 3)] * 6


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the two real clips are not here")
def test_the_real_clips_are_stored_whole(raw):
    for modality in ("rgb", "depth"):
        (raw.root / modality).symlink_to((SAMPLE / modality).resolve())
    raw.lists(train=["subject11_r0 80 0", "subject11_r1 80 1"])
    assert raw.build().class_names == ("0", "1")
    for label, clip in enumerate(raw.records()):
        assert (clip.name, clip.label) == (f"subject11_r{label}", label)
        for modality, frames in clip.frames.items():
            files = sorted((SAMPLE / modality / clip.name).iterdir())
            assert list(frames) == [file.read_bytes() for file in files]
