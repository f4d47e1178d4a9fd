"""The noise of a colour and of a depth camera, and the encoded frames that they hand over.

All noise is drawn anew for every frame, so that it says nothing about the direction of time.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt16

# How hard the noise is. Ranges are uniform draws, one a clip.
COLOUR_GAIN = (0.85, 1.1)  # exposure
COLOUR_FLICKER = 0.015  # standard deviation of the exposure from frame to frame
COLOUR_NOISE = (2.0, 7.0)  # standard deviation, of 255
JPEG_QUALITY = 92
DEPTH_NOISE_MM = (2.0, 5.0)  # standard deviation at one metre; grows with the square of the distance
DEPTH_STEP_MM = 4.0  # quantisation at one metre; grows with the square of the distance
DEPTH_HOLES = (0.002, 0.015)  # share of pixels without a measurement
BORDER_MM = 100  # a step between neighbours that counts as a border
BORDER_HOLES = 0.3  # share of pixels without a measurement at borders
BORDER_MIXED = 0.2  # share of pixels at borders that fall between the two surfaces
_PNG_COMPRESSION = 3


def photograph(rgb: Float[np.ndarray, "t h w 3"], rng: np.random.Generator) -> list[bytes]:
    """Adds noise to colour frames and encodes them.

    Args:
        rgb: 0 to 255.
        rng: source of every draw.

    Returns:
        One JPEG a frame.
    """
    gain, noise = rng.uniform(*COLOUR_GAIN), rng.uniform(*COLOUR_NOISE)
    return [_photograph_frame(frame, gain, noise, rng) for frame in rgb]


def measure(depth_mm: Float[np.ndarray, "t h w"], rng: np.random.Generator) -> list[bytes]:
    """Adds noise, holes and ragged borders to depth frames and encodes them.

    Args:
        depth_mm: distance from the camera, millimetres.
        rng: source of every draw.

    Returns:
        One PNG of 16 bits a frame, in millimetres; 0 where there is no measurement.
    """
    noise, holes = rng.uniform(*DEPTH_NOISE_MM), rng.uniform(*DEPTH_HOLES)
    return [
        _encode(".png", _measure_frame(f, noise, holes, rng), cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION)
        for f in depth_mm
    ]


def _photograph_frame(rgb: Float[np.ndarray, "h w 3"], gain: float, noise: float, rng: np.random.Generator) -> bytes:
    exposed = rgb * gain * (1 + COLOUR_FLICKER * rng.standard_normal())
    noisy = exposed + noise * rng.standard_normal(rgb.shape, np.float32)
    bgr = np.clip(np.rint(noisy[..., ::-1]), 0, 255).astype(np.uint8)
    return _encode(".jpg", bgr, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def _measure_frame(
    depth_mm: Float[np.ndarray, "h w"], noise: float, holes: float, rng: np.random.Generator
) -> UInt16[np.ndarray, "h w"]:
    window = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(depth_mm, window), cv2.dilate(depth_mm, window)
    border = far - near > BORDER_MM
    chance, mixture = rng.random((2, *depth_mm.shape), np.float32)
    mixed = border & (chance < BORDER_MIXED)
    measured = np.where(mixed, near + mixture * (far - near), depth_mm)
    square_metres = (measured / 1000) ** 2
    measured = measured + noise * square_metres * rng.standard_normal(depth_mm.shape, np.float32)
    step = DEPTH_STEP_MM * square_metres
    measured = np.rint(np.rint(measured / step) * step)
    missing = (chance > 1 - holes) | (border & (chance > 1 - BORDER_HOLES))
    return np.where(missing, 0, measured).astype(np.uint16)


def _encode(extension: str, image: np.ndarray, option: int, value: int) -> bytes:
    done, encoded = cv2.imencode(extension, image, [option, value])
    if not done:
        raise ValueError(
            f"OpenCV could not encode a frame of shape {image.shape} and type {image.dtype} as {extension}"
        )
    return encoded.tobytes()
