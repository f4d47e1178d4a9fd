"""Files that the documentation takes for granted: clips, a network of the paper's size with random weights, runs."""

import shutil
from pathlib import Path

import cv2
import numpy as np
from rgbd_jax.configs import nvgesture
from rgbd_jax.datasets.rgbd_demo.clips import make_pair
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from rgbd_jax.inference.video import write_video
from rgbd_jax.pytorch.torch_file import write_torch
from tests.made_raw_data import video_of
from tests.pytorch.networks import checkpoint, manifest_of, random_state_dict

NVGESTURE_CLASSES = 25
CONTINUED = "Checkpoints/I3DWTrans-NvGesture-M/checkpoint.pth.tar"
# Copied under names that pages use for runs before they say how these are trained.
RUNS = {"runs/mine": "runs/demo", "runs/nv_rgb": "runs/demo"}


def clips(folder: Path) -> None:
    """Makes videos, folders of frames, an array for an exported network, and a data set of one's own in RAW."""
    made = [clip for pair in (0, 1) for clip in make_pair(0, "validation", pair, 0)]
    frames = [cv2.cvtColor(cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
              for clip in made for frame in clip.rgb]  # fmt: skip
    write_video(folder / "clip.mp4", frames[: len(made[0].rgb)], 15)
    write_video(folder / "long.mp4", frames, 15)
    video_of(folder / "long.mkv", [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames])
    shutil.rmtree(folder / "RAW", ignore_errors=True)
    for split, count in {"train": 5, "validation": 2}.items():
        for pair in (0, 1):
            for index in range(count):
                for clip in make_pair(0, split, pair, index):
                    write_frames(folder / f"RAW/rgb/{split}/{CLASS_NAMES[clip.label]}/{clip.name}", clip.rgb, "jpg")
                    write_frames(folder / f"RAW/depth/{split}/{CLASS_NAMES[clip.label]}/{clip.name}", clip.depth, "png")
    np.save(folder / "clips.npy", np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8))
    for number, clip in enumerate(made):
        write_frames(folder / f"clips/wave_{number + 1:03}", clip.rgb, "jpg")


def write_frames(folder: Path, frames: list[bytes], suffix: str) -> None:
    """Writes the frames of a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        (folder / f"{number:06}.{suffix}").write_bytes(frame)


def checkpoints(folder: Path) -> None:
    """Makes what the authors would hand out, with random weights."""
    streams = {
        "model_best.pth.tar": "rgb",
        "model_best-Nv-M.pth.tar": "rgb",
        "depth.pth.tar": "depth",
        CONTINUED: "rgb",
    }
    for name, stream in streams.items():
        if not (folder / name).exists():
            tensors = random_state_dict(manifest_of(nvgesture.get_config(stream), NVGESTURE_CLASSES))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_torch(folder / name, checkpoint(tensors, epoch=1 if name == CONTINUED else 100))


def runs(folder: Path) -> None:
    """Copies the demo's runs, once they are there, to names of other ones."""
    for name, source in RUNS.items():
        if (folder / source).exists() and not (folder / name).exists():
            shutil.copytree(folder / source, folder / name)
