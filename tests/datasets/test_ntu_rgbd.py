"""NTU RGB+D from videos, from extracted frames, from depth alone; what stops a build."""

import shutil

import cv2
import numpy as np
import pytest
from rgbd_jax.configs import ntu_cs

from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.ingest.build import prepare
from tests.datasets import ntu
from tests.datasets.conftest import decoded

NAME = "S001C002P001R001A007"
OTHER = "S001C001P003R002A060"
FRAMES = 6


def records(raw, split):
    return {clip.name: clip for clip in raw.records(split, "ntu_rgbd")}


@pytest.mark.parametrize("nested", ["", "/S001", "/nturgbd_s001/S001"])
def test_colour_and_depth_are_cut_around_the_person_frame_by_frame(raw, nested):
    for name in (NAME, OTHER):
        video = ntu.write_video(raw.root, name, FRAMES, f"nturgb+d_rgb{nested}")
        ntu.write_depth(raw.root, name, FRAMES, f"nturgb+d_depth_masked{nested}")
    info = raw.build("ntu_rgbd")
    assert info.clips == {"cs_train": 1, "cs_validation": 1, "cv_train": 1, "cv_validation": 1}
    assert len(info.class_names) == 60
    clip = records(raw, "cs_train")[NAME]
    assert clip.label == 6
    assert records(raw, "cs_validation")[OTHER].label == 59
    colour = ntu.video_frames(video)
    assert len(colour) == len(clip.frames["rgb"]) == len(clip.frames["depth"]) == FRAMES
    for i in range(FRAMES):
        expected = ntu.cut_colour(colour[i], ntu.depth_frame(i))
        jpeg = cv2.imencode(".jpg", expected, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        assert clip.frames["rgb"][i] == jpeg
        np.testing.assert_array_equal(decoded(clip.frames["depth"][i]), ntu.cut_depth(ntu.depth_frame(i)))
        assert decoded(clip.frames["depth"][i]).dtype == np.uint16


def test_what_was_cut_when_it_was_built_is_what_is_cut_while_loading(raw):
    """The same depth frames whole, loaded with the crop of the reference, give the same batch to the last bit."""
    folders = [ntu.write_depth(raw.root, name, FRAMES) for name in (NAME, OTHER)]
    config = ntu_cs.get_config("depth")
    config.clip.frames = FRAMES
    config.data.data_dir = str(raw.data_dir)
    raw.build("ntu_rgbd")
    (cut,) = loader.eval_batches(open_splits(config).training, config, batch_size=1)

    whole = raw.root.parent / "whole"
    shutil.copytree(folders[0], whole / "depth" / "train" / "a" / "clip")
    prepare("rgbd_folder", data_dir=raw.data_dir, raw_dir=whole)
    config.data.update(dataset="rgbd_folder", train_split="train", eval_split="train")
    config.data.depth.reference_person_crop = True
    (cropped,) = loader.eval_batches(open_splits(config).training, config, batch_size=1)
    np.testing.assert_array_equal(cut["frames"]["depth"], cropped["frames"]["depth"])
    config.data.depth.reference_person_crop = False
    (uncropped,) = loader.eval_batches(open_splits(config).training, config, batch_size=1)
    assert (uncropped["frames"]["depth"] != cut["frames"]["depth"]).any()


def test_a_config_that_would_cut_twice_is_refused(raw):
    for name in (NAME, OTHER):
        ntu.write_depth(raw.root, name, 2)
    config = ntu_cs.get_config("depth")
    config.data.data_dir = str(raw.data_dir)
    raw.build("ntu_rgbd")
    config.data.depth.reference_person_crop = True
    with pytest.raises(
        ValueError, match=r"config\.data\.depth\.reference_person_crop is set, but .* when it was built"
    ):
        open_splits(config)


def extracted(raw, name, size, frames=3, folder="Images"):
    clip = raw.root / folder / f"{name}_rgb"
    clip.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(frames):
        cv2.imwrite(str(clip / f"{i + 1:06d}.jpg"), cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), size))
    return clip


def test_frames_that_the_reference_extracted_count_from_1(raw):
    small, large = extracted(raw, NAME, (320, 240)), extracted(raw, OTHER, (480, 270), folder="Images/S001")
    for name in (NAME, OTHER):
        ntu.write_depth(raw.root, name, 4)  # one more than colour frames
    (raw.root / "nturgb+d_rgb").mkdir()  # the extracted ones are taken
    raw.build("ntu_rgbd")
    kept = records(raw, "cs_train")[NAME].frames
    assert list(kept["rgb"]) == [(small / f"00000{i}.jpg").read_bytes() for i in (1, 2, 3)]
    assert len(kept["depth"]) == 3
    for i, content in enumerate(kept["depth"]):
        np.testing.assert_array_equal(decoded(content), ntu.cut_depth(ntu.depth_frame(i)))
    shrunk = records(raw, "cs_validation")[OTHER].frames["rgb"]
    for i, frame in enumerate(shrunk, start=1):
        expected = cv2.resize(cv2.imread(str(large / f"{i:06d}.jpg")), (320, 240))
        assert frame == cv2.imencode(".jpg", expected, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def test_extracted_frames_that_were_not_cut(raw):
    extracted(raw, NAME, (1920, 1080), frames=1)
    raw.refused("ntu_rgbd", r"000001\.jpg: is 1920x1080; expected a frame that is cropped around the person")


def depth_file(raw, number):
    return raw.root / "nturgb+d_depth_masked" / NAME / f"MDepth-{number:08d}.png"


def shorten_depth(count):
    return lambda raw: [depth_file(raw, number).unlink() for number in range(count + 1, FRAMES + 1)]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda raw: shutil.rmtree(depth_file(raw, 1).parent), rf"there is no clip .*/{NAME}; it is in rgb only"),
        (lambda raw: depth_file(raw, 1).rename(depth_file(raw, 9)), r"00000001\.png: is missing \(1 of 6 frames\)"),
        (shorten_depth(3), rf"{NAME}: expected as many frames as {NAME}_rgb\.avi has, at least 5, found 3"),
        (shorten_depth(5), rf"{NAME}: expected as many frames as {NAME}_rgb\.avi has, found only 5"),
        (lambda raw: depth_file(raw, 3).write_bytes(b"\x89PNG\r\n\x1a\n"), r"00000003\.png: cannot be decoded"),
        (lambda raw: ntu.write_depth(raw.root, "S001C001P001R001A121", 1), "expected an action from A001 to A120"),
        (lambda raw: ntu.write_depth(raw.root, "clip7", 1), r"clip7: holds frames, but is not named as a clip"),
        (
            lambda raw: ntu.write_depth(raw.root, NAME, 1, "nturgb+d_depth_masked/S001"),
            rf"S001/{NAME}: holds {NAME} a second time; the first is .*depth_masked/{NAME}",
        ),
    ],
)
def test_wrong_clips_are_named(raw, spoil, expected):
    ntu.write_video(raw.root, NAME, FRAMES)
    ntu.write_depth(raw.root, NAME, FRAMES)
    spoil(raw)
    raw.refused("ntu_rgbd", expected)
    assert not list(raw.data_dir.rglob("[!.]*.*"))


def test_videos_need_depth_and_a_folder_needs_clips(raw):
    raw.refused("ntu_rgbd", r"expected nturgb\+d_rgb/ or Images/, and nturgb\+d_depth_masked/ in", FileNotFoundError)
    ntu.write_video(raw.root, NAME, 1)
    raw.refused("ntu_rgbd", "and the masked depth shows where they are", FileNotFoundError)
    (raw.root / "nturgb+d_depth_masked").mkdir()
    (raw.root / "nturgb+d_rgb" / f"{NAME}_rgb.avi").unlink()
    raw.refused("ntu_rgbd", "has no good clip")


def test_lists_say_which_clips_how_many_frames_and_which_split(raw):
    third = "S002C003P003R001A003"
    for name in (NAME, OTHER, third, "S002C003P003R001A004"):  # the last one is in no list
        ntu.write_depth(raw.root, name, FRAMES)
    # Not by the rule of these subjects.
    raw.lists("dataset_splits/@CS", train=[f"{OTHER}_rgb 4 59 ", f"{third}_rgb 6 2 "], valid=[f" {NAME}_rgb  5\t6"])
    info = raw.build("ntu_rgbd")
    assert info.clips == {"cs_train": 2, "cs_validation": 1, "cv_train": 2, "cv_validation": 1}
    assert {name: len(clip.frames["depth"]) for name, clip in records(raw, "cs_train").items()} == {OTHER: 4, third: 6}
    assert set(records(raw, "cs_validation")) == {NAME}
    assert set(records(raw, "cv_train")) == {NAME, third}  # cv has no lists: the rule, over the clips of the lists


@pytest.mark.parametrize(
    ("cs", "cv", "expected"),
    [
        ([f"{NAME}_rgb 4 5"], None, rf"@CS/train\.txt:1: expected label 6, by the name of {NAME}, found 5"),
        ([f"{NAME}_rgb 4 60"], None, r"@CS/train\.txt:1: expected a label from 0 to 59, found 60"),
        ([f"{NAME}_rgb 9 6"], None, r"expected 9 frames, found 6"),
        ([f"{NAME}_rgb 4 6", f"{NAME}_rgb 4 6"], None, rf"train\.txt:2: names {NAME} a second time"),
        (["S1_rgb 4 6"], None, r"train\.txt:1: expected a name such as S001C001P001R001A001, found 'S1'"),
        (
            [f"{NAME}_rgb 4 6"],
            [f"{NAME}_rgb 5 6"],
            rf"@CV/train\.txt:1: {NAME} has 5 frames and label 6 here, but 4 and",
        ),
        (["S009C001P001R001A001_rgb 4 0"], None, r"@CS/train\.txt:1: there is no clip .*S009C001P001R001A001"),
    ],
)
def test_wrong_lines_are_named(raw, cs, cv, expected):
    ntu.write_depth(raw.root, NAME, FRAMES)
    raw.lists("dataset_splits/@CS", train=cs)
    if cv:
        raw.lists("dataset_splits/@CV", train=cv)
    raw.refused("ntu_rgbd", expected)
