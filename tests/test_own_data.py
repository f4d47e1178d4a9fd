"""The guide for clips of one's own, followed literally: every command of it, on videos that were just recorded."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rgbd_jax.datasets.rgbd_demo.clips import make_pair
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from tests.conftest import ROOT

CLIPS = {"train": 5, "validation": 2}  # of each of the four classes


def record(file: Path, frames: list[bytes]) -> None:
    """Writes a video of 160x120 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 15, (160, 120))
    for frame in frames:
        writer.write(cv2.resize(cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR), (160, 120)))
    writer.release()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like a checkout, with videos in RAW."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "datasets", "rgbd_jax", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    for split, count in CLIPS.items():
        for pair in (0, 1):
            for index in range(count):
                for clip in make_pair(0, split, pair, index):
                    record(folder / f"RAW/rgb/{split}/{CLASS_NAMES[clip.label]}/{clip.name}.mp4", clip.rgb)
    return folder


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
