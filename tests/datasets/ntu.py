"""Tiny NTU RGB+D clips in the layout of the real ones, and the crop of the reference, stated by other means."""

from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

WIDTH, HEIGHT = 192, 108  # of the colour videos: a tenth of the camera's
PEOPLE = [(180, 150, 60, 120), (300, 90, 40, 150)]  # left, top, width, height in the depth frame


def depth_frame(seed: int) -> np.ndarray:
    """A masked depth frame, uint16[424 512]: one or two people far apart, who move with the seed."""
    rng = np.random.default_rng(seed)
    frame = np.zeros((424, 512), np.uint16)
    for left, top, width, height in PEOPLE[: 1 + seed % 2]:
        left, top = left + 7 * (seed % 5), top - 5 * (seed % 4)
        frame[top : top + height, left : left + width] = rng.integers(1000, 4000, (height, width))
    frame[5:8, 5:8] = 3000  # noise
    frame[40:90, 60:110] = 1024  # 0 modulo 256: seen in the high byte alone
    frame[20:70, 150:200] = 200  # seen in the low byte alone
    return frame


def write_depth(root: Path, name: str, frames: int, folder: str = "nturgb+d_depth_masked") -> Path:
    clip = root / folder / name
    clip.mkdir(parents=True)
    for i in range(frames):
        cv2.imwrite(str(clip / f"MDepth-{i + 1:08d}.png"), depth_frame(i))
    return clip


def write_video(root: Path, name: str, frames: int, folder: str = "nturgb+d_rgb") -> Path:
    file = root / folder / f"{name}_rgb.avi"
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    across = np.linspace(0, 255, WIDTH, dtype=np.uint8)
    for i in range(frames):
        image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = across, np.linspace(0, 255, HEIGHT)[:, None], 40 * i % 256
        writer.write(image)
    writer.release()
    return file


def video_frames(file: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(file))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


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
    """The crop of a colour frame: around the scaled centre of what is in the high byte, half as large, as 320x240."""
    x, y = centre((depth // 256).astype(np.uint8) * np.uint8(255) == 0)
    scaled = int(WIDTH / 512 * x), int(HEIGHT / 424 * y)
    return cv2.resize(window(frame, *scaled, WIDTH // 2, HEIGHT // 2), (320, 240))


def cut_depth(depth: np.ndarray) -> np.ndarray:
    """The crop of a depth frame: 320x240 around the centre of what is not 0 in 255 d modulo 256."""
    return window(depth, *centre((255 * depth.astype(int)) % 256 == 0), 320, 240)
