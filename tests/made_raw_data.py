"""Raw data in the layout of each data set of the paper, clips of noise: what the commands in the docs run on."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

FRAMES = 20  # more than the 16 of which `reference_protocol` leaves clips out
COLOUR = np.random.default_rng(0).integers(0, 255, (FRAMES, 60, 80, 3), np.uint8)
GREY = COLOUR[..., [0, 0, 0]]
NTU_SIZE = (192, 108)  # of NTU's colour videos: a tenth of the camera's
PEOPLE = [(180, 150, 60, 120), (300, 90, 40, 150)]  # left, top, width, height in NTU's depth frames


def write(folder: Path) -> None:
    """Makes NVGESTURE, JESTER, THU_READ, ISOGD, NTU and UTD_MHAD in a folder, anew."""
    for make in (nvgesture, jester, thu_read, isogd, ntu, utd_mhad):
        root = folder / make.__name__.upper()
        shutil.rmtree(root, ignore_errors=True)
        make(root)


def nvgesture(root: Path) -> None:
    """Frames and lists as they are laid out for the reference; 20 clips, so that the last tenth is two."""
    for split, count in {"train": 20, "valid": 4}.items():
        names = [f"{split}/class_{number:02}/subject1_r0" for number in range(1, count + 1)]
        for name in names:
            frames_of(root / "rgb" / name, COLOUR)
            frames_of(root / "depth" / name, GREY)
        lines_of(root / f"dataset_splits/{split}.txt", (f"{name} {FRAMES} {k}" for k, name in enumerate(names)))


def jester(root: Path) -> None:
    """Folders of frames numbered from 1, and lists as they come."""
    classes = [f"Gesture {number}" for number in range(27)]
    lines_of(root / "jester-v1-labels.csv", classes)
    for split, numbers in {"train": range(1, 5), "validation": range(5, 9)}.items():
        for number in numbers:
            frames_of(root / f"20bn-jester-v1/{number}", COLOUR, "{:05d}.jpg", first=1)
        lines_of(root / f"jester-v1-{split}.csv", (f"{n};{classes[k]}" for k, n in enumerate(numbers)))


def thu_read(root: Path) -> None:
    """Folders of frames by modality; a clip of each of the eight people."""
    for person in ("cgy", "cwx", "fjw", "gs", "lhh", "lzy", "tys", "wyy"):
        frames_of(root / f"RGB/RGB_clap_hand_{person}_1", COLOUR)
        frames_of(root / f"Depth/D_clap_hand_{person}_1", GREY)


def isogd(root: Path) -> None:
    """Videos of both modalities, and lists as they come."""
    for split in ("train", "valid", "test"):
        pairs = [[f"{split}/001/{letter}_{number:05}.avi" for letter in "MK"] for number in range(1, 5)]
        for rgb, depth in pairs:
            video_of(root / rgb, COLOUR)
            video_of(root / depth, GREY)
        lines_of(root / f"{split}_list.txt", (f"{rgb} {depth} {k}" for k, (rgb, depth) in enumerate(pairs, 1)))


def utd_mhad(root: Path) -> None:
    """Videos and MATLAB files of two subjects, one who trains and one who is evaluated."""
    (root / "Depth").mkdir(parents=True)
    depth = np.moveaxis(16 * GREY[..., 0].astype(np.float64), 0, -1)  # h w t
    for name in (f"a{action}_s{subject}_t1" for subject in (1, 2) for action in range(1, 5)):
        video_of(root / f"RGB/{name}_color.avi", COLOUR)
        savemat(root / f"Depth/{name}_depth.mat", {"d_depth": depth})


def ntu(root: Path) -> None:
    """Videos and masked depth frames; four clips of one who trains, two of one who is evaluated (cross-subject)."""
    for person, actions in {1: range(1, 5), 3: range(1, 3)}.items():
        for action in actions:
            ntu_video(root, f"S001C002P{person:03}R001A{action:03}")
            ntu_depth(root, f"S001C002P{person:03}R001A{action:03}")


def ntu_video(root: Path, name: str, frames: int = FRAMES, folder: str = "nturgb+d_rgb") -> Path:
    """Writes a video in which every pixel has a colour of its own."""
    file = root / folder / f"{name}_rgb.avi"
    width, height = NTU_SIZE
    images = np.empty((frames, height, width, 3), np.uint8)
    images[..., 0], images[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    images[..., 2] = 40 * np.arange(frames)[:, None, None] % 256
    video_of(file, images)
    return file


def ntu_depth(root: Path, name: str, frames: int = FRAMES, folder: str = "nturgb+d_depth_masked") -> Path:
    """Writes the masked depth frames of a clip."""
    frames_of(root / folder / name, map(ntu_depth_frame, range(frames)), "MDepth-{:08d}.png", first=1)
    return root / folder / name


def ntu_depth_frame(seed: int) -> np.ndarray:
    """Returns uint16[424 512]: one or two people far apart, who move with the seed."""
    rng = np.random.default_rng(seed)
    frame = np.zeros((424, 512), np.uint16)
    for left, top, width, height in PEOPLE[: 1 + seed % 2]:
        left, top = left + 7 * (seed % 5), top - 5 * (seed % 4)
        frame[top : top + height, left : left + width] = rng.integers(1000, 4000, (height, width))
    frame[5:8, 5:8] = 3000  # noise
    frame[40:90, 60:110] = 1024  # 0 modulo 256: seen in the high byte alone
    frame[20:70, 150:200] = 200  # seen in the low byte alone
    return frame


def frames_of(folder: Path, frames: Iterable[np.ndarray], pattern: str = "{:06d}.jpg", first: int = 0) -> None:
    """Writes the frames of a clip as files with numbers for names."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        cv2.imwrite(str(folder / pattern.format(number)), frame)


def video_of(file: Path, frames: Sequence[np.ndarray], codec: str = "MJPG") -> None:
    """Writes frames, blue first, as a video."""
    file.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*codec), 15, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def lines_of(file: Path, lines: Iterable[str]) -> None:
    """Writes a list."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
