"""The guide for clips of one's own, followed literally: every command of it, on videos that were just recorded."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from rgbd_jax.datasets.rgbd_demo.clips import make_pair
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from tests.conftest import ROOT
from tests.datasets.conftest import decoded
from tests.made_raw_data import video_of

CLIPS = {"train": 5, "validation": 2}  # of each of the four classes


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like a checkout, with videos of 160x120 pixels in RAW; training is of two epochs."""
    for name in ("datasets", "rgbd_jax", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    small, end = tmp_path / "configs/folder_small.py", "    return config\n"
    shorter = "    config.train.epochs, config.schedule.warm_up_epochs = 2, 1\n"
    small.write_text(small.read_text().replace(end, shorter + end))
    for split, count in CLIPS.items():
        for clip in [clip for pair in (0, 1) for index in range(count) for clip in make_pair(0, split, pair, index)]:
            frames = [cv2.resize(decoded(frame), (160, 120)) for frame in clip.rgb]
            video_of(tmp_path / f"RAW/rgb/{split}/{CLASS_NAMES[clip.label]}/{clip.name}.mp4", frames, "mp4v")
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_guide_runs_as_it_stands(checkout):
    commands = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/own_data.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(commands) == 4
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    output = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=checkout,
            env={**environment, "PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        output.append(done.stdout)
    assert "0 problems; every frame was decoded" in output[0]
    assert "20 train, 8 validation clips, 4 classes, rgb" in output[1]
    assert cv2.imread(str(checkout / "sheet.png")) is not None
    trained, evaluated = (json.loads(text.splitlines()[-1]) for text in output[2:])
    assert trained["clips"] == evaluated["clips"] == 8
    assert evaluated["top1"] == trained["top1"]
    assert list((checkout / "runs/small/scores").iterdir())
