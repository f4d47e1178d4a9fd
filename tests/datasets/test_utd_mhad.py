"""UTD-MHAD: videos and MATLAB files as they are downloaded."""

import numpy as np
import pytest
from scipy.io import savemat

from tests.datasets.conftest import decoded, jpeg, video_frames

DATASET = "utd_mhad"
NAMES = ("a1_s1_t1", "a27_s2_t4", "a10_s7_t2", "a2_s8_t1")


def depth_of(name, frames=6, dtype=np.float64):
    """Returns h w t, as MATLAB stores it; a function of the name."""
    return np.random.default_rng(len(name) + ord(name[1])).integers(0, 4500, (24, 32, frames)).astype(dtype)


def write(raw, name, frames=6, depth_frames=None, **arrays):
    raw.video(f"RGB/{name}_color.avi", frames)
    (raw.root / "Depth").mkdir(exist_ok=True)
    arrays = arrays or {"d_depth": depth_of(name, depth_frames or frames)}
    savemat(raw.root / f"Depth/{name}_depth.mat", arrays, do_compression=True)


@pytest.fixture
def four(raw):
    for name in NAMES:
        write(raw, name)
    return raw


@pytest.mark.parametrize("storage", ["compact", "fast"])
def test_odd_subjects_train_and_even_ones_evaluate(four, storage):
    info = four.build(depth_storage=storage)
    assert info.clips == {"train": 2, "validation": 2}
    assert len(info.class_names) == 27
    found = [(clip.name, clip.label) for split in info.clips for clip in four.records(split)]
    assert found == [("a1_s1_t1", 0), ("a10_s7_t2", 9), ("a2_s8_t1", 1), ("a27_s2_t4", 26)]
    if storage == "compact":
        clip = four.records()[1]
        assert list(clip.frames["rgb"]) == list(map(jpeg, video_frames(four.root / "RGB/a10_s7_t2_color.avi")))
        np.testing.assert_array_equal(np.stack([*map(decoded, clip.frames["depth"])], -1), depth_of("a10_s7_t2"))


def test_a_modality_with_a_few_frames_more_ends_with_the_other(four):
    write(four, "a3_s1_t1", frames=6, depth_frames=8)
    write(four, "a4_s1_t1", frames=9, depth_frames=8)
    four.build()
    counts = {clip.name: {len(frames) for frames in clip.frames.values()} for clip in four.records()}
    assert (counts["a3_s1_t1"], counts["a4_s1_t1"]) == ({6}, {8})


def test_one_modality_is_enough(four):
    for file in (four.root / "RGB").iterdir():
        file.unlink()
    assert four.build().modalities == ("depth",)


def test_what_is_wrong_is_named(four):
    write(four, "a28_s1_t1")
    write(four, "a5_s1_t1", frames=6, depth_frames=20)
    write(four, "a6_s1_t1", d_depth=depth_of("a6", dtype=np.float64) + 0.5)
    write(four, "a7_s1_t1", d_depth=np.zeros((24, 32)), other=np.zeros(3))
    write(four, "a8_s1_t1", d_depth=-depth_of("a8"))
    for name, damage in {"a9_s1_t1": lambda content: content[:200], "a11_s1_t1": lambda content: b""}.items():
        write(four, name)
        file = four.root / f"Depth/{name}_depth.mat"
        file.write_bytes(damage(file.read_bytes()))
    (four.root / "Depth/a1_s1_t1_depth.mat").unlink()
    four.refused(
        "a28_s1_t1_depth.mat: expected an action from 1 to 27",
        "expected about as many depth frames as rgb frames, found 6 rgb and 20 depth",
        r"a7_s1_t1_depth.mat: expected one array of height x width x frames, found d_depth \(24, 32\)",
        "a9_s1_t1_depth.mat: is (no MATLAB file|damaged)",
        "a11_s1_t1_depth.mat: is no MATLAB file",
        "there is no clip .*a1_s1_t1_depth.mat; it is in rgb only",
    )
    assert four.build(skip_bad_clips=True).clips == {"train": 1, "validation": 2}
    left_out = "\n".join(four.build(skip_bad_clips=True).left_out)
    for name in ("a6_s1_t1", "a8_s1_t1"):
        assert f"{name}_depth.mat: d_depth holds other values than whole millimetres from 0 to 65535" in left_out
