"""Raw data in the layout of each data set of the paper, a few clips of each: what their commands in the docs run on.

The clips are the demo's hands, those of NTU its tests' rectangles; the labels mean nothing.
"""

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
from rgbd_jax.datasets.rgbd_demo.clips import Clip, make_pair

from tests.datasets import ntu

FRAMES = 20  # more than the 16 of which `reference_protocol` leaves clips out
CLASSES = 27  # Jester's


def write(folder: Path) -> None:
    """Makes NVGESTURE, JESTER, THU_READ, ISOGD and NTU in a folder, anew."""
    made = [clip for index in range(2) for pair in range(6) for clip in make_pair(0, "train", pair, index)]
    for name, make in {"NVGESTURE": nvgesture, "JESTER": jester, "THU_READ": thu_read, "ISOGD": isogd}.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        make(folder / name, itertools.cycle(made))
    shutil.rmtree(folder / "NTU", ignore_errors=True)
    ntu_rgbd(folder / "NTU")


def nvgesture(root: Path, clips: "itertools.cycle[Clip]") -> None:
    """Frames and lists as they are laid out for the reference; 20 clips, so that the last tenth is two."""
    for split, count in {"train": 20, "valid": 4}.items():
        lines = []
        for number in range(count):
            name = f"{split}/class_{number + 1:02}/subject1_r0"
            clip = next(clips)
            frames_of(root / "rgb" / name, colour(clip))
            frames_of(root / "depth" / name, grey(clip))
            lines.append(f"{name} {FRAMES} {number}")
        lines_of(root / f"dataset_splits/{split}.txt", lines)


def jester(root: Path, clips: "itertools.cycle[Clip]") -> None:
    """Folders of frames numbered from 1, and lists as they come."""
    names = [f"Gesture {number}" for number in range(CLASSES)]
    lines_of(root / "jester-v1-labels.csv", names)
    numbers = itertools.count(1)
    for split in ("train", "validation"):
        lines = []
        for label in range(4):
            number = next(numbers)
            frames_of(root / f"20bn-jester-v1/{number}", colour(next(clips)), first=1, width=5)
            lines.append(f"{number};{names[label]}")
        lines_of(root / f"jester-v1-{split}.csv", lines)


def thu_read(root: Path, clips: "itertools.cycle[Clip]") -> None:
    """Folders of frames by modality; a clip of each of the eight people."""
    for person in ("cgy", "cwx", "fjw", "gs", "lhh", "lzy", "tys", "wyy"):
        clip = next(clips)
        frames_of(root / f"RGB/RGB_clap_hand_{person}_1", colour(clip))
        frames_of(root / f"Depth/D_clap_hand_{person}_1", grey(clip))


def isogd(root: Path, clips: "itertools.cycle[Clip]") -> None:
    """Videos of both modalities, and lists as they come."""
    for split in ("train", "valid", "test"):
        lines = []
        for number in range(1, 5):
            clip = next(clips)
            pair = f"{split}/001/M_{number:05}.avi", f"{split}/001/K_{number:05}.avi"
            for file, frames in zip(pair, (colour(clip), grey(clip)), strict=True):
                video_of(root / file, frames)
            lines.append(f"{pair[0]} {pair[1]} {number}")
        lines_of(root / f"{split}_list.txt", lines)


def ntu_rgbd(root: Path) -> None:
    """Videos and masked depth frames; four clips of one who trains, two of one who is evaluated (cross-subject)."""
    for person, actions in {1: range(1, 5), 3: range(1, 3)}.items():
        for action in actions:
            name = f"S001C002P{person:03}R001A{action:03}"
            ntu.write_video(root, name, FRAMES)
            ntu.write_depth(root, name, FRAMES)


def colour(clip: Clip) -> list[np.ndarray]:
    """Returns a clip's colour frames, uint8 [h w c], blue first."""
    frames = [cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR) for frame in clip.rgb]
    return stretched(frames)


def grey(clip: Clip) -> list[np.ndarray]:
    """Returns a clip's depth frames as grey pictures, uint8 [h w c]."""
    frames = [cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED) for frame in clip.depth]
    return stretched([cv2.cvtColor((frame // 16).astype(np.uint8), cv2.COLOR_GRAY2BGR) for frame in frames])


def stretched(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Returns as many frames as `FRAMES`, in order."""
    return [frames[index * len(frames) // FRAMES] for index in range(FRAMES)]


def frames_of(folder: Path, frames: list[np.ndarray], first: int = 0, width: int = 6) -> None:
    """Writes the frames of a clip as JPEG files with numbers for names."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        cv2.imwrite(str(folder / f"{number:0{width}}.jpg"), frame)


def video_of(file: Path, frames: list[np.ndarray]) -> None:
    """Writes frames, blue first, as a video."""
    file.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 15, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def lines_of(file: Path, lines: list[str]) -> None:
    """Writes a list."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
