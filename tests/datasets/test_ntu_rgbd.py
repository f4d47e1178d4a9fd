"""NTU RGB+D from videos, from extracted frames, from depth alone; what stops a build."""

import shutil

import cv2
import numpy as np
import pytest
from rgbd_jax.configs import ntu_cs
from scipy import ndimage

from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.ingest.build import prepare
from tests.datasets.conftest import decoded, jpeg, video_frames
from tests.made_raw_data import NTU_SIZE, frames_of, ntu_depth, ntu_depth_frame, ntu_video

DATASET = "ntu_rgbd"
NAME = "S001C002P001R001A007"
OTHER = "S001C001P003R002A060"
FRAMES = 6


def centre(nobody: np.ndarray) -> tuple[int, int]:
    """The person's centre where `nobody` is false, for people who are upright rectangles (bool[h w])."""
    eroded = ndimage.minimum_filter(~nobody, 3, mode="constant", cval=True)
    grown = ndimage.maximum_filter(eroded, 10, mode="constant", cval=False)
    parts, _ = ndimage.label(grown, np.ones((3, 3)))
    centres = []
    for rows, columns in ndimage.find_objects(parts):
        if (rows.stop - rows.start - 1) * (columns.stop - columns.start - 1) > 500:
            centres.append(((columns.start + columns.stop - 1) // 2, (rows.start + rows.stop - 1) // 2))
    return min(x for x, _ in centres), min(y for _, y in centres)


def window(image: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    left, top = max(0, x - width // 2), max(0, y - height // 2)
    return image[top : top + height, left : left + width]


def cut_colour(frame: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The reference's crop: around the scaled centre of what is in the high byte, half as large, as 320x240."""
    x, y = centre((depth // 256).astype(np.uint8) * np.uint8(255) == 0)
    width, height = NTU_SIZE
    return cv2.resize(window(frame, int(width / 512 * x), int(height / 424 * y), width // 2, height // 2), (320, 240))


def cut_depth(depth: np.ndarray) -> np.ndarray:
    """The reference's crop: 320x240 around the centre of what is not 0 in 255 d modulo 256."""
    return window(depth, *centre((255 * depth.astype(int)) % 256 == 0), 320, 240)


def records(raw, split):
    return {clip.name: clip for clip in raw.records(split)}


@pytest.mark.parametrize("nested", ["", "/S001", "/nturgbd_s001/S001"])
def test_colour_and_depth_are_cut_around_the_person_frame_by_frame(raw, nested):
    for name in (NAME, OTHER):
        video = ntu_video(raw.root, name, FRAMES, f"nturgb+d_rgb{nested}")
        ntu_depth(raw.root, name, FRAMES, f"nturgb+d_depth_masked{nested}")
    info = raw.build()
    assert info.clips == {"cs_train": 1, "cs_validation": 1, "cv_train": 1, "cv_validation": 1}
    assert len(info.class_names) == 60
    clip = records(raw, "cs_train")[NAME]
    assert (clip.label, records(raw, "cs_validation")[OTHER].label) == (6, 59)
    stored = zip(video_frames(video), clip.frames["rgb"], clip.frames["depth"], strict=True)
    for i, (colour, rgb, depth) in enumerate(stored):
        assert rgb == jpeg(cut_colour(colour, ntu_depth_frame(i)))
        np.testing.assert_array_equal(decoded(depth), cut_depth(ntu_depth_frame(i)))
        assert decoded(depth).dtype == np.uint16


def test_what_was_cut_when_it_was_built_is_what_is_cut_while_loading(raw):
    """The same depth frames whole, loaded with the crop of the reference, give the same batch to the last bit."""
    folders = [ntu_depth(raw.root, name, FRAMES) for name in (NAME, OTHER)]
    config = ntu_cs.get_config("depth")
    config.clip.frames = FRAMES
    config.data.data_dir = str(raw.data_dir)

    def batch():
        return next(iter(loader.eval_batches(open_splits(config).training, config, batch_size=1)))["frames"]["depth"]

    raw.build()
    cut = batch()
    config.data.depth.reference_person_crop = True
    with pytest.raises(ValueError, match=r"config\.data\.depth\.reference_person_crop is set, but .* it was built"):
        open_splits(config)
    whole = raw.root.parent / "whole"
    shutil.copytree(folders[0], whole / "depth" / "train" / "a" / "clip")
    prepare("rgbd_folder", data_dir=raw.data_dir, raw_dir=whole)
    config.data.update(dataset="rgbd_folder", train_split="train", eval_split="train")
    np.testing.assert_array_equal(cut, batch())
    config.data.depth.reference_person_crop = False
    assert (batch() != cut).any()


def extracted(raw, name, size, frames=3, folder="Images"):
    noise = np.random.default_rng(0).integers(0, 255, (frames, 9, 16, 3), np.uint8)
    clip = raw.root / folder / f"{name}_rgb"
    frames_of(clip, [cv2.resize(image, size) for image in noise], first=1)
    return clip


def test_frames_that_the_reference_extracted_count_from_1(raw):
    small, large = extracted(raw, NAME, (320, 240)), extracted(raw, OTHER, (480, 270), folder="Images/S001")
    for name in (NAME, OTHER):
        ntu_depth(raw.root, name, 4)  # one more than colour frames
    (raw.root / "nturgb+d_rgb").mkdir()  # the extracted ones are taken
    raw.build()
    kept = records(raw, "cs_train")[NAME].frames
    assert list(kept["rgb"]) == [(small / f"00000{i}.jpg").read_bytes() for i in (1, 2, 3)]
    assert len(kept["depth"]) == 3
    for i, content in enumerate(kept["depth"]):
        np.testing.assert_array_equal(decoded(content), cut_depth(ntu_depth_frame(i)))
    shrunk = [cv2.resize(cv2.imread(str(large / f"{i:06d}.jpg")), (320, 240)) for i in (1, 2, 3)]
    assert list(records(raw, "cs_validation")[OTHER].frames["rgb"]) == list(map(jpeg, shrunk))


def test_extracted_frames_that_were_not_cut(raw):
    extracted(raw, NAME, (1920, 1080), frames=1)
    raw.refused(r"000001\.jpg: is 1920x1080; expected a frame that is cropped around the person")


def depth_file(raw, number):
    return raw.root / "nturgb+d_depth_masked" / NAME / f"MDepth-{number:08d}.png"


def shorten_depth(count):
    return lambda raw: [depth_file(raw, number).unlink() for number in range(count + 1, FRAMES + 1)]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda raw: shutil.rmtree(depth_file(raw, 1).parent), rf"there is no clip .*/{NAME}; it is in rgb only"),
        (lambda raw: depth_file(raw, 1).rename(depth_file(raw, 9)), rf"{NAME}: frame 1 is missing"),
        (shorten_depth(3), rf"{NAME}: expected as many frames as {NAME}_rgb\.avi has, at least 5, found 3"),
        (shorten_depth(5), rf"{NAME}: expected as many frames as {NAME}_rgb\.avi has, found only 5"),
        (lambda raw: depth_file(raw, 3).write_bytes(b"\x89PNG\r\n\x1a\n"), r"00000003\.png: cannot be decoded"),
        (lambda raw: ntu_depth(raw.root, "S001C001P001R001A121", 1), "expected an action from A001 to A120"),
        (lambda raw: ntu_depth(raw.root, "clip7", 1), r"clip7: holds frames, but is not named as a clip"),
        (
            lambda raw: ntu_depth(raw.root, NAME, 1, "nturgb+d_depth_masked/S001"),
            rf"S001/{NAME}: holds {NAME} a second time; the first is .*depth_masked/{NAME}",
        ),
    ],
)
def test_wrong_clips_are_named(raw, spoil, expected):
    ntu_video(raw.root, NAME, FRAMES)
    ntu_depth(raw.root, NAME, FRAMES)
    spoil(raw)
    raw.refused(expected)


def test_videos_need_depth_and_a_folder_needs_clips(raw):
    expected = r"expected nturgb\+d_rgb/ or Images/, and nturgb\+d_depth_masked/ in"
    raw.refused(expected, error=FileNotFoundError)
    ntu_video(raw.root, NAME, 1)
    raw.refused("and the masked depth shows where they are", error=FileNotFoundError)
    (raw.root / "nturgb+d_depth_masked").mkdir()
    (raw.root / "nturgb+d_rgb" / f"{NAME}_rgb.avi").unlink()
    raw.refused("has no good clip")


def test_lists_say_which_clips_how_many_frames_and_which_split(raw):
    third = "S002C003P003R001A003"
    for name in (NAME, OTHER, third, "S002C003P003R001A004"):  # the last one is in no list
        ntu_depth(raw.root, name, FRAMES)
    # Not by the rule of these subjects.
    raw.lists("dataset_splits/@CS", train=[f"{OTHER}_rgb 4 59 ", f"{third}_rgb 6 2 "], valid=[f" {NAME}_rgb  5\t6"])
    assert raw.build().clips == {"cs_train": 2, "cs_validation": 1, "cv_train": 2, "cv_validation": 1}
    assert {name: len(clip.frames["depth"]) for name, clip in records(raw, "cs_train").items()} == {OTHER: 4, third: 6}
    assert set(records(raw, "cs_validation")) == {NAME}
    assert set(records(raw, "cv_train")) == {NAME, third}  # cv has no lists: the rule, over the clips of the lists


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": [f"{NAME}_rgb 4 5"]}, rf"@CS/train\.txt:1: expected label 6, by the name of {NAME}, found 5"),
        ({"train": ["S1_rgb 4 6"]}, r"train\.txt:1: expected a name such as S001C001P001R001A001, found 'S1'"),
        ({"train": [f"{NAME}_rgb 4 6"], "valid": [f"{NAME}_rgb 4 6"]}, rf"valid\.txt:1: {NAME} is in two splits of cs"),
        ({"train": [f"{NAME}_rgb 4 6"]}, rf"@CV/train\.txt:1: {NAME} has 5 frames here, but 4 at .*@CS/train\.txt:1"),
        ({"train": ["S009C001P001R001A001_rgb 4 0"]}, r"@CS/train\.txt:1: there is no clip .*S009C001P001R001A001"),
    ],
)
def test_wrong_lines_are_named(raw, lists, expected):
    ntu_depth(raw.root, NAME, FRAMES)
    raw.lists("dataset_splits/@CS", **lists)
    raw.lists("dataset_splits/@CV", train=[f"{NAME}_rgb 5 6"])
    raw.refused(expected)
