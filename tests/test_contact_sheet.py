"""The contact sheet shows what the loader hands to the network, in its place, with the heat maps that go with it."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from rgbd_jax.configs import demo

from rgbd_jax.data.loader import eval_batches
from rgbd_jax.data.source import open_split
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.tools.contact_sheet import draw_contact_sheet
from tests.conftest import ROOT

TEXT, GAP, RULE = 190, 4, 6  # pixels
SIZE = 2 * 64  # the demo's frames are enlarged


def cell(sheet: np.ndarray, row: int, column: int, rows_a_clip: int) -> np.ndarray:
    """The picture in a row and column, as small as it was."""
    top = row * (SIZE + GAP) + row // rows_a_clip * RULE
    left = TEXT + column * (SIZE + GAP)
    return sheet[top : top + SIZE : 2, left : left + SIZE : 2]


@pytest.fixture(scope="module")
def train(small_demo):
    return open_split("rgbd_demo", small_demo, "train")


def test_every_clip_has_its_frames_and_heat_maps_in_their_places(train):
    config = demo.get_config("fusion")
    sheet = draw_contact_sheet(train, config, clips=len(train), frames=8)
    seen = next(iter(eval_batches(train, config, batch_size=len(train))))["frames"]
    assert sheet.shape == (len(train) * (4 * (SIZE + GAP) + RULE), TEXT + 8 * (SIZE + GAP), 3)
    for clip in (0, 17, len(train) - 1):
        for place, modality in enumerate(("rgb", "depth")):
            heat = np.asarray(heat_maps(seen[modality][clip : clip + 1], 4))[0]
            for column in (0, 3, 7):
                frame = 2 * column + 1  # 8 of 16 frames
                row = 4 * clip + 2 * place
                np.testing.assert_array_equal(cell(sheet, row, column, 4), seen[modality][clip, frame])
                np.testing.assert_array_equal(
                    cell(sheet, row + 1, column, 4), np.rint(heat[frame] * 127.5).repeat(3, axis=-1)
                )


def test_the_seed_decides_the_sample_and_the_training_transform(train):
    config = demo.get_config("rgb")
    sheets = {
        (seed, augmented): draw_contact_sheet(train, config, clips=3, seed=seed, augmented=augmented)
        for seed in (0, 1)
        for augmented in (False, True)
    }
    for (seed, augmented), sheet in sheets.items():
        again = draw_contact_sheet(train, config, clips=3, seed=seed, augmented=augmented)
        np.testing.assert_array_equal(again, sheet)
    texts = {key: sheet[:, :TEXT] for key, sheet in sheets.items()}
    assert np.array_equal(texts[0, False], texts[0, True])  # the same clips
    assert not np.array_equal(sheets[0, False], sheets[0, True])
    assert not np.array_equal(texts[0, False], texts[1, False])


def test_the_command_writes_the_picture(small_demo, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    options = ["--data_dir", small_demo, "--out", out, "--config", ROOT / "configs/demo.py", "--clips", "2"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/contact_sheet.py", "rgbd_demo", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == f"{out}: 2 of 48 clips of train\n", done.stderr
    sheet = draw_contact_sheet(open_split("rgbd_demo", small_demo, "train"), demo.get_config("fusion"), clips=2)
    np.testing.assert_array_equal(cv2.imread(str(out))[..., ::-1], sheet)
