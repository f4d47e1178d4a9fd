"""Prepared splits as the rest of the project reads them."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest

from rgbd_jax.data.source import open_split
from rgbd_jax.ingest.build import prepare
from tests.datasets.conftest import decoded

CLIPS = {"train": 6, "validation": 2}
FRAMES = 3


def encoded_frame(seed: int, suffix: str = ".jpg") -> bytes:
    dtype = np.uint16 if suffix == ".png" else np.uint8
    shape = (8, 10) if suffix == ".png" else (8, 10, 3)
    return cv2.imencode(suffix, np.random.default_rng(seed).integers(0, 255, shape).astype(dtype))[1].tobytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A prepared `rgbd_folder` with two classes, colour JPEG and 16-bit depth PNG."""
    raw = tmp_path_factory.mktemp("raw")
    for split, count in CLIPS.items():
        for clip in range(count):
            for modality, suffix in (("rgb", ".jpg"), ("depth", ".png")):
                folder = raw / modality / split / "ba"[clip % 2] / f"clip{clip}"
                folder.mkdir(parents=True)
                for frame in range(FRAMES):
                    (folder / f"{frame}{suffix}").write_bytes(encoded_frame(100 * clip + frame, suffix))
    data_dir = tmp_path_factory.mktemp("data")
    prepare("rgbd_folder", raw_dir=raw, data_dir=data_dir)
    return data_dir


def test_a_split_says_what_it_holds(data_dir):
    split = open_split("rgbd_folder", data_dir, None)
    assert (split.split, len(split)) == ("train", 6)
    assert split.class_names == ("a", "b")
    assert split.num_classes == 2
    assert split.modalities == ("rgb", "depth")


def test_frames_are_those_on_disk_in_time_order(data_dir):
    clips = {clip.name: clip for clip in open_split("rgbd_folder", data_dir, "train")}
    clip = clips["train/b/clip4"]
    assert clip.label == 1
    assert list(clip.frames["rgb"]) == [encoded_frame(400 + frame) for frame in range(FRAMES)]
    for frame, stored in enumerate(clip.frames["depth"]):  # stored without compression
        np.testing.assert_array_equal(decoded(stored), decoded(encoded_frame(400 + frame, ".png")))


def test_reading_needs_no_tensorflow(data_dir):
    program = f"""
import sys
from rgbd_jax.data.source import open_split
from tests.datasets.conftest import decoded
assert len(open_split("rgbd_folder", {str(data_dir)!r}, "train")[0].frames["rgb"]) == {FRAMES}
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("cut", ["50%", "1", "-1", "84%"])
def test_the_parts_of_a_split_are_the_split(data_dir, cut):
    parts = [open_split("rgbd_folder", data_dir, part) for part in (f"train[:{cut}]", f"train[{cut}:]")]
    assert all(0 < len(part) < 6 for part in parts)
    whole = open_split("rgbd_folder", data_dir, "train")
    assert [clip.name for part in parts for clip in part] == [clip.name for clip in whole]


def test_a_split_survives_pickling(data_dir):
    split = open_split("rgbd_folder", data_dir, "validation")
    copy = pickle.loads(pickle.dumps(split))
    assert (copy.class_names, copy.modalities, len(copy)) == (split.class_names, split.modalities, len(split))
    assert [copy[i] for i in range(len(copy))] == [split[i] for i in range(len(split))]


@pytest.mark.parametrize("index", [-1, 6, 100])
def test_a_clip_out_of_range_is_an_error(data_dir, index):
    with pytest.raises(IndexError, match=f"clip {index} of 6"):
        open_split("rgbd_folder", data_dir, "train")[index]


@pytest.mark.parametrize("split", ["test", "train[1:", "", "train[99:]", "train+test"])
def test_an_unknown_split_is_an_error_that_lists_the_splits(data_dir, split):
    with pytest.raises(ValueError, match="there are train, validation") as error:
        open_split("rgbd_folder", data_dir, split)
    assert repr(split) in str(error.value)


def test_data_that_is_not_prepared_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        open_split("nvgesture", tmp_path, "train")
    assert str(tmp_path / "nvgesture") in str(error.value)
    assert f"python scripts/build_dataset.py nvgesture --data_dir {tmp_path}" in str(error.value)


def test_a_build_that_was_killed_is_not_prepared_data(data_dir, tmp_path):
    (tmp_path / "rgbd_folder").mkdir()
    (prepared,) = (data_dir / "rgbd_folder").iterdir()
    (tmp_path / "rgbd_folder" / "incomplete.ABC_1.0.0").symlink_to(prepared)  # the name TFDS gives it meanwhile
    with pytest.raises(FileNotFoundError, match="not prepared"):
        open_split("rgbd_folder", tmp_path, "train")


def test_the_newest_version_is_opened(data_dir, tmp_path):
    (prepared,) = (data_dir / "rgbd_folder").iterdir()
    (tmp_path / "rgbd_folder").mkdir()
    for version in ("1.0.0", "1.9.0", "1.10.0"):
        (tmp_path / "rgbd_folder" / version).symlink_to(prepared)
    assert open_split("rgbd_folder", tmp_path, "train").directory.name == "1.10.0"
