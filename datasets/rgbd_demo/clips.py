"""A clip of the demo as a function of (seed, split, pair, index).

The noise of the colour and of the depth camera is drawn anew for every frame, so that it carries no temporal order.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from .motions import CLASS_NAMES, PAIRS
from .scene import render

SPLITS = ("train", "validation")


class Clip(NamedTuple):
    """One clip as it is stored: JPEG and 16-bit PNG (millimetres, 0 for no measurement), one a frame."""

    name: str
    label: int
    rgb: list[bytes]
    depth: list[bytes]


def make_pair(seed: int, split: str, pair: int, index: int) -> tuple[Clip, Clip]:
    """Makes clip `index` of either class of `PAIRS[pair]`: the same scene and noise, one or both modalities reversed.

    The splits of a seed share no random number.
    """
    scene_seed, rgb_seed, depth_seed = np.random.SeedSequence((seed, SPLITS.index(split), pair, index)).spawn(3)
    rgb, depth_mm = render(PAIRS[pair], scene_seed)
    frames = {
        "rgb": _photograph(rgb, np.random.default_rng(rgb_seed)),
        "depth": _measure(depth_mm, np.random.default_rng(depth_seed)),
    }
    is_reversed = PAIRS[pair].reversed_modalities
    second = {modality: each[::-1] if modality in is_reversed else each for modality, each in frames.items()}
    names = [f"{CLASS_NAMES[label]}_{index:04d}" for label in (2 * pair, 2 * pair + 1)]
    return Clip(names[0], 2 * pair, **frames), Clip(names[1], 2 * pair + 1, **second)


def _photograph(rgb: Float[np.ndarray, "t h w 3"], rng: np.random.Generator) -> list[bytes]:
    """Adds exposure, flicker and noise to frames (0 to 255) and returns them as JPEG."""
    gain, noise = rng.uniform(0.85, 1.1), rng.uniform(2.0, 7.0)
    encoded = []
    for frame in rgb:
        exposed = frame * gain * (1 + 0.015 * rng.standard_normal())
        noisy = exposed + noise * rng.standard_normal(frame.shape, np.float32)
        bgr = np.clip(np.rint(noisy[..., ::-1]), 0, 255).astype(np.uint8)
        encoded.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return encoded


def _measure(depth_mm: Float[np.ndarray, "t h w"], rng: np.random.Generator) -> list[bytes]:
    """Adds noise, quantisation, holes (0) and ragged borders to depth and returns it as 16-bit PNG in millimetres."""
    noise, holes = rng.uniform(2.0, 5.0), rng.uniform(0.002, 0.015)  # noise at one metre, fraction of pixels
    encoded = []
    for frame in depth_mm:
        near, far = cv2.erode(frame, np.ones((3, 3), np.uint8)), cv2.dilate(frame, np.ones((3, 3), np.uint8))
        border = far - near > 100
        chance, mixture = rng.random((2, *frame.shape), np.float32)
        mixed = border & (chance < 0.2)  # these pixels fall between the two surfaces
        measured = np.where(mixed, near + mixture * (far - near), frame)
        square_metres = (measured / 1000) ** 2  # noise and step grow with the square of the distance
        measured = measured + noise * square_metres * rng.standard_normal(frame.shape, np.float32)
        step = 4.0 * square_metres
        measured = np.rint(np.rint(measured / step) * step)
        missing = (chance > 1 - holes) | (border & (chance > 1 - 0.3))
        image = np.where(missing, 0, measured).astype(np.uint16)
        encoded.append(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())
    return encoded
