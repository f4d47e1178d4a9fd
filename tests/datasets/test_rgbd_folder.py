"""A user's own clips: split lists, class folders, frames of every kind, videos."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.datasets.conftest import decoded


def test_split_lists_give_clips_labels_order_and_the_first_frames_byte_for_byte(raw):
    for path in ("x/c", "x/a", "b"):
        raw.clip(path)
    raw.lists(train=[" x/c 4 2 ", "x/a 3 0"], valid=["b 4 1"], classes=["grab", "swipe left", "wave", "point"])
    info = raw.build()
    assert info.built
    assert info.clips == {"train": 2, "validation": 1}
    assert info.class_names == ("grab", "swipe left", "wave", "point")
    assert info.modalities == ("rgb", "depth")
    clips = [*raw.records(), *raw.records("validation")]
    assert [(clip.name, clip.label) for clip in clips] == [("x/c", 2), ("x/a", 0), ("b", 1)]
    for modality, frames in clips[1].frames.items():
        files = sorted((raw.root / modality / "x/a").iterdir())
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
    assert (image.np_dtype, image.shape) == (dtype, (None, None, channels))
    for file, stored in zip(sorted((raw.root / "depth/a").iterdir()), raw.records()[0].frames["depth"], strict=True):
        assert decoded(stored).dtype == dtype
        np.testing.assert_array_equal(decoded(stored), decoded(file.read_bytes()))


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80")])
def test_videos_become_jpeg_frames_and_depth_grey_unless_it_is_coloured(raw, suffix, codec):
    for grey in (True, False):
        for name, is_grey in ((f"rgb/train/slide/clip.{suffix}", False), (f"depth/train/slide/clip.{suffix}", grey)):
            raw.video(name, codec=codec, grey=is_grey)
        image = tfds.builder_from_directory(raw.build().directory).info.features["depth"].feature
        assert image.shape == (None, None, 1 if grey else 3)
        (clip,) = raw.records()
        assert clip.name == "train/slide/clip"
        assert {modality: len(frames) for modality, frames in clip.frames.items()} == {"rgb": 10, "depth": 10}
        for i in (0, 9):
            rgb, depth = (decoded(clip.frames[modality][i])[24, 4 * i + 4] for modality in ("rgb", "depth"))
            assert np.abs(rgb - np.array([20.0, 90.0, 230.0])).max() < 40
            assert np.abs(depth - (200.0 if grey else np.array([20.0, 90.0, 230.0]))).max() < 40
        shutil.rmtree(raw.data_dir)
