"""Loading of a training clip as the paper has it, frame by frame with Pillow, OpenCV and NumPy: for comparison."""

import io
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

_RESIZE = (320, 240)
_GREY = np.array([0.2989, 0.587, 0.114], np.float32)


def training_clip(encoded: Sequence[bytes], frames: int, size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames float32[t h w 3] and heat maps float32[t h w] of one clip.

    Args:
        encoded: the clip's frames, JPEG of three channels or 16-bit PNG of depth.
        frames: how many are taken.
        size: their height and width in the end, pixels.
        window: frames that a heat map pools.
    """
    rng = np.random.default_rng(0)
    edges = np.linspace(0, len(encoded), frames + 1).astype(int)
    numbers = [int(rng.integers(first, max(first + 1, last))) for first, last in itertools.pairwise(edges)]
    left, top = int(rng.integers(0, _RESIZE[0] - size)), int(rng.integers(0, _RESIZE[1] - size))
    angle = float(rng.integers(-10, 10))
    clip = np.stack([_frame(encoded[number], angle, (left, top), size) for number in numbers])  # t h w 3
    return clip, heat_maps(clip, window)


def _frame(encoded: bytes, angle: float, corner: tuple[int, int], size: int) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(encoded)))
    if image.ndim == 2:
        grey = np.clip(255 - image.astype(np.float32) / 4500 * 255, 0, 255).astype(np.uint8)
        image = cv2.applyColorMap(grey, cv2.COLORMAP_JET)
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    rotated = Image.fromarray(cv2.warpAffine(image, matrix, (width, height)))
    resized = rotated.resize(_RESIZE, Image.Resampling.BICUBIC)
    cropped = resized.crop((*corner, corner[0] + size, corner[1] + size))
    flipped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return (np.asarray(flipped.resize((size, size), Image.Resampling.BICUBIC), np.float32) - 127.5) / 128


def heat_maps(clip: np.ndarray, window: int) -> np.ndarray:
    """Returns heat maps float32[t h w] of normalised frames float32[t h w 3]."""
    result = np.zeros(clip.shape[:3], np.float32)
    for end in range(window - 1, len(clip)):
        pooled = np.zeros(clip.shape[1:], np.float32)
        for k in range(1, window + 1):
            pooled += (2 * k - window - 1) * clip[end - window + k]
        pooled = np.maximum(pooled, 0)
        pooled -= pooled.min()
        pooled /= pooled.max() or 1
        grey = pooled @ _GREY
        static = np.where(grey > grey.mean(), grey, 0)
        eroded = cv2.erode(static, np.ones((2, 2), np.uint8))
        static = np.asarray(cv2.dilate(eroded, np.ones((3, 3), np.uint8)), np.float32)
        static -= static.min()
        static /= static.max() or 1
        result[end] = (grey + static) * static
    return result
