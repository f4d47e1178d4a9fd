"""The preview shows what the loader hands to the network, in its place, with the heat maps that go with it."""

import cv2
import numpy as np
import pytest
from rgbd_jax.configs import demo

from rgbd_jax.data.loader import eval_batches
from rgbd_jax.data.source import open_split
from rgbd_jax.inference.drawing import heat_picture
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.tools import preview
from rgbd_jax.tools.preview import GAP, RULE, TEXT_WIDTH, draw_preview
from tests.conftest import ROOT
from tests.tiny import run_command

SIZE = 2 * 64  # the demo's frames are enlarged


@pytest.fixture(scope="module")
def train(small_demo):
    return open_split("rgbd_demo", small_demo, "train")


def test_every_clip_has_its_frames_and_heat_maps_in_their_places(train):
    config = demo.get_config("fusion")
    sheet = draw_preview(train, config, clips=len(train), frames=8)
    seen = next(iter(eval_batches(train, config, batch_size=len(train))))["frames"]
    assert sheet.shape == (len(train) * (4 * (SIZE + GAP) + RULE), TEXT_WIDTH + 8 * (SIZE + GAP), 3)

    def cell(row, column):
        top, left = row * (SIZE + GAP) + row // 4 * RULE, TEXT_WIDTH + column * (SIZE + GAP)
        return sheet[top : top + SIZE : 2, left : left + SIZE : 2]

    for clip in (0, len(train) - 1):
        for index, modality in enumerate(("rgb", "depth")):
            heat = np.asarray(heat_maps(seen[modality][clip : clip + 1], 4))[0]
            for column in (0, 7):
                frame, row = 2 * column + 1, 4 * clip + 2 * index  # 8 of 16 frames
                np.testing.assert_array_equal(cell(row, column), seen[modality][clip, frame])
                np.testing.assert_array_equal(cell(row + 1, column), heat_picture(heat[frame, ..., 0]))


def test_the_seed_decides_the_sample_and_the_training_transform(train):
    def draw(seed, *, augmented):
        return draw_preview(train, demo.get_config("rgb"), clips=3, seed=seed, augmented=augmented)

    plain, augmented, other = draw(0, augmented=False), draw(0, augmented=True), draw(1, augmented=False)
    np.testing.assert_array_equal(draw(0, augmented=True), augmented)
    assert np.array_equal(plain[:, :TEXT_WIDTH], augmented[:, :TEXT_WIDTH])  # the same clips
    assert not np.array_equal(plain, augmented)
    assert not np.array_equal(plain[:, :TEXT_WIDTH], other[:, :TEXT_WIDTH])


def test_command(small_demo, tmp_path, capsys, train):
    out = tmp_path / "new" / "sheet.png"
    options = ["rgbd_demo", f"--data_dir={small_demo}", f"--config={ROOT / 'configs/demo.py'}", "--clips=2"]
    run_command(preview, *options, f"--out={out}")
    assert capsys.readouterr().out == f"{out}: 2 of 48 clips of train\n"
    sheet = draw_preview(train, demo.get_config("fusion"), clips=2)  # of all modalities that there are
    np.testing.assert_array_equal(cv2.imread(str(out))[..., ::-1], sheet)
    for wrong, message in ((["--out=sheet.gif"], "--out=sheet"), ([f"--out={out}", "--clips=0"], "at least 1 clip")):
        with pytest.raises(ValueError, match=message):
            run_command(preview, *options, *wrong)
