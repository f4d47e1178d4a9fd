"""Clips for benchmarks, made on the spot: textures that drift behind a hand-sized blob, with a sensor's noise."""

import operator
from typing import SupportsIndex

import cv2
import numpy as np

from rgbd_jax.data.codec import encode_depth
from rgbd_jax.data.source import ClipRecord

_CLIPS = 8
_FRAMES = 80
_JPEG_QUALITY = 90


class Clips:
    """A few clips that can be read like those of a prepared data set."""

    def __init__(self, records: list[ClipRecord]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        return self._records[operator.index(index)]

    @classmethod
    def of_colour(cls, width: int, height: int) -> "Clips":
        """Makes clips of JPEG frames."""
        return cls([_record("rgb", number, width, height) for number in range(_CLIPS)])

    @classmethod
    def of_depth(cls, width: int, height: int) -> "Clips":
        """Makes clips of 16-bit PNG frames, as the builders store them."""
        return cls([_record("depth", number, width, height) for number in range(_CLIPS)])


def _record(modality: str, number: int, width: int, height: int) -> ClipRecord:
    rng = np.random.default_rng(number)
    coarse = rng.uniform(0, 1, (height // 8, width // 8, 3)).astype(np.float32)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)  # h w 3
    y, x = np.mgrid[:height, :width]
    frames = []
    for time in range(_FRAMES):
        scene = np.roll(texture, time, axis=1)
        hand = (x - width * (0.3 + 0.005 * time)) ** 2 + (y - height / 2) ** 2 < (height / 6) ** 2
        scene = np.where(hand[..., None], 0.9, scene)
        if modality == "rgb":
            pixels = 255 * scene + rng.normal(0, 3, scene.shape)
            image = np.clip(pixels, 0, 255).astype(np.uint8)
            frames.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())
        else:
            millimetres = 4000 - 2500 * scene[..., 0] + rng.normal(0, 6, (height, width))
            measured = rng.random((height, width)) > 0.01
            frames.append(encode_depth(np.where(measured, millimetres, 0).astype(np.uint16)))
    return ClipRecord(name=f"clip_{number}", label=0, frames={modality: frames})
