"""Single-channel depth frames to the three-channel frames that the network sees, and the crop around the person."""

import functools

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from ml_collections import ConfigDict

_PERSON_CROP = (320, 240)  # width, height, pixels
_PERSON_AREA = 500  # square pixels: smaller contours are noise

Depth = UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""16 bit in millimetres or 8 bit in any unit; 0 where there is no measurement."""
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""


def colour_depth(depth: Depth, settings: ConfigDict) -> UInt8[np.ndarray, "h w 3"]:
    """Maps depth to three channels by `config.data.depth`, pixel by pixel.

    The channels of JET keep the order OpenCV gives them (blue, green, red), as in the reference, although all other
    frames are RGB: its checkpoints were trained so.

    Raises:
        ValueError: `depth` is neither uint8[h w] nor uint16[h w].
    """
    if depth.ndim != 2 or depth.dtype not in (np.uint8, np.uint16):
        found = f"{depth.dtype}{list(depth.shape)}"
        raise ValueError(f"single-channel depth must be uint8[h w] or uint16[h w], not {found}")
    grey = encode_depth(depth, settings)
    if settings.colour_map == "grey":
        return cv2.merge([grey, grey, grey])
    return cv2.applyColorMap(np.ascontiguousarray(grey), cv2.COLORMAP_JET)


def encode_depth(depth: Depth, settings: ConfigDict) -> UInt8[np.ndarray, "h w"]:
    """Encodes depth in 8 bits by `config.data.depth.encoding`.

    "linear" maps 16-bit depth from `range_mm` to 255 (nearest) .. 1 (farthest), clipping, and keeps 8-bit depth.
    "reference_wrapped" takes 255 * depth modulo 256, which wraps every 256 units.
    """
    if settings.encoding == "reference_wrapped":
        return _wrapped(depth)
    if depth.dtype == np.uint8:
        return depth
    return cv2.LUT(depth, _linear_table(*settings.range_mm))  # a quarter of the time of indexing


@functools.lru_cache(maxsize=8)
def _linear_table(near: int, far: int) -> UInt8[np.ndarray, " 65536"]:
    depth = np.arange(65536)
    table = np.rint(np.clip(1 + 254 * (far - depth) / (far - near), 1, 255)).astype(np.uint8)
    table[0] = 0
    return table


def _wrapped(depth: Depth) -> UInt8[np.ndarray, "h w"]:
    # 255 = -1 modulo 256. The reference overflows by accident, and its depth checkpoints were trained so.
    return np.negative(depth).astype(np.uint8)


def cut_depth(depth: Depth, settings: ConfigDict) -> Depth:
    """Cuts 320x240 pixels around the person if `config.data.depth.reference_person_crop` is set."""
    return _cut(depth, encode_depth(depth, settings)) if settings.reference_person_crop else depth


def crop_person(depth: Depth) -> Depth:
    """Cuts the person out as `cut_depth` does under the encoding "reference_wrapped"; used when a data set is built."""
    return _cut(depth, _wrapped(depth))


def _cut(depth: Depth, mask: UInt8[np.ndarray, "h w"]) -> Depth:
    left, top, right, bottom = person_box(mask)
    return depth[top:bottom, left:right]


def person_box(mask: UInt8[np.ndarray, "h w"]) -> Box:
    """Finds the 320x240 box around the person, as the reference does, clipped at the frame; `mask` is 0 elsewhere."""
    height, width = mask.shape
    return _box(_person_centre(mask), _PERSON_CROP, width, height)


def person_box_in_colour(depth: Depth, width: int, height: int) -> Box:
    """Finds the box around the person in a colour frame of `width` x `height`, from its masked depth frame.

    As in the reference, the centre is found in the higher 8 bits of the depth, so that whatever is nearer than 256
    units is nobody; the box has half the width and height of the colour frame and is clipped at it.
    """
    mask = depth if depth.dtype == np.uint8 else (depth >> 8).astype(np.uint8)
    x, y = _person_centre(mask)
    # In this order of operations: another one rounds to another pixel now and then.
    centre = int((width / depth.shape[1]) * x), int((height / depth.shape[0]) * y)
    return _box(centre, (width // 2, height // 2), width, height)


def _person_centre(mask: UInt8[np.ndarray, "h w"]) -> tuple[int, int]:
    """Returns (smallest x, smallest y) over the minimum-area rectangles of all contours that are not noise.

    Without such a contour, which stops the reference, it is the centre of the frame.
    """
    height, width = mask.shape
    mask = cv2.dilate(cv2.erode(mask, np.ones((3, 3), np.uint8)), np.ones((10, 10), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    centres = [cv2.minAreaRect(contour)[0] for contour in contours if cv2.contourArea(contour) > _PERSON_AREA]
    x, y = np.asarray(centres or [(width // 2, height // 2)]).astype(int).min(axis=0)
    return int(x), int(y)


def _box(centre: tuple[int, int], size: tuple[int, int], width: int, height: int) -> Box:
    left, top = max(centre[0] - size[0] // 2, 0), max(centre[1] - size[1] // 2, 0)
    return left, top, min(left + size[0], width), min(top + size[1], height)
