"""Single-channel depth frames to the three-channel frames that the network sees, and where the person is in them."""

import functools

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from ml_collections import ConfigDict

ENCODINGS = ("linear", "reference_wrapped")
COLOUR_MAPS = ("jet", "grey")
_PERSON_CROP = (320, 240)  # width, height, pixels
_PERSON_AREA = 500  # square pixels: smaller contours are noise


def check_settings(settings: ConfigDict) -> None:
    """Checks `config.data.depth`.

    Raises:
      ValueError: A field has a value that cannot be used; the message names it.
    """
    if settings.encoding not in ENCODINGS:
        raise ValueError(f"config.data.depth.encoding is {settings.encoding!r}; expected one of {', '.join(ENCODINGS)}")
    if settings.colour_map not in COLOUR_MAPS:
        raise ValueError(
            f"config.data.depth.colour_map is {settings.colour_map!r}; expected one of {', '.join(COLOUR_MAPS)}"
        )
    near, far = settings.range_mm
    if not 0 <= near < far <= 65535:
        raise ValueError(
            f"config.data.depth.range_mm is {tuple(settings.range_mm)}; expected (nearest, farthest) in millimetres "
            "with 0 <= nearest < farthest <= 65535"
        )


def colour_depth(depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], settings: ConfigDict) -> np.ndarray:
    """Turns one single-channel depth frame into a frame of three channels, with OpenCV's JET map or all alike.

    The channels of JET keep the order OpenCV gives them (blue, green, red), as in the reference, although all other
    frames are RGB: its checkpoints were trained so.

    Args:
      depth: Depth, 16 bit in millimetres or 8 bit in any unit, 0 where there is no measurement.
      settings: `config.data.depth`. `encoding` "linear" maps 16-bit depths from `range_mm` to 255 (nearest) .. 1
        (farthest), clipping, and takes 8-bit depths as they are; "reference_wrapped" takes 255 * depth modulo 256, in
        which depth wraps every 256 units. `colour_map` is "jet" or "grey".

    Returns:
      uint8[h w 3], every pixel a function of the same pixel of `depth`.

    Raises:
      ValueError: `depth` is neither uint8[h w] nor uint16[h w].
    """
    if depth.ndim != 2 or depth.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"single-channel depth must be uint8[h w] or uint16[h w], not {depth.dtype}{list(depth.shape)}"
        )
    grey = encode_depth(depth, settings)
    if settings.colour_map == "grey":
        return cv2.merge([grey, grey, grey])
    return cv2.applyColorMap(np.ascontiguousarray(grey), cv2.COLORMAP_JET)


def cut_depth(depth: np.ndarray, settings: ConfigDict) -> np.ndarray:
    """Returns the part of a single-channel depth frame (h w) that is used.

    With `settings.reference_person_crop` these are 320x240 pixels around the person; otherwise it is the whole frame.
    """
    if not settings.reference_person_crop:
        return depth
    left, top, right, bottom = person_box(encode_depth(depth, settings))
    return depth[top:bottom, left:right]


def encode_depth(
    depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], settings: ConfigDict
) -> UInt8[np.ndarray, "h w"]:
    """Encodes depth in 8 bits as `settings.encoding` says (see `colour_depth`)."""
    if settings.encoding == "reference_wrapped":
        return _wrapped(depth)
    if depth.dtype == np.uint8:
        return depth
    return cv2.LUT(depth, _linear_table(*settings.range_mm))  # a quarter of the time of indexing


@functools.lru_cache(maxsize=8)
def _linear_table(near: int, far: int) -> UInt8[np.ndarray, " 65536"]:
    """8-bit value of every 16-bit depth: near or nearer is 255, far or farther 1, no measurement 0."""
    depth = np.arange(65536)
    table = np.rint(np.clip(1 + 254 * (far - depth) / (far - near), 1, 255)).astype(np.uint8)
    table[0] = 0
    return table


def _wrapped(depth: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    # 255 = -1 modulo 256. The reference overflows by accident, and its depth checkpoints have learnt from that.
    return np.negative(depth).astype(np.uint8)


def crop_person(
    depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
) -> UInt16[np.ndarray, "ch cw"] | UInt8[np.ndarray, "ch cw"]:
    """Cuts 320x240 pixels around the person out of a masked depth frame and keeps its values.

    Encoded as "reference_wrapped", the result is what `reference_person_crop` makes of the whole frame.
    """
    left, top, right, bottom = person_box(_wrapped(depth))
    return depth[top:bottom, left:right]


def person_box(mask: UInt8[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Finds the 320x240 box around the person in a masked depth frame, as the reference does.

    Args:
      mask: Encoded depth, 0 where there is nobody.

    Returns:
      left, top, right, bottom in pixels (right and bottom exclusive), clipped at the frame.
    """
    height, width = mask.shape
    return _box(_person_centre(mask), _PERSON_CROP, width, height)


def person_box_in_colour(
    depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], width: int, height: int
) -> tuple[int, int, int, int]:
    """Finds the box around the person in the colour frame that goes with a masked depth frame, as the reference does.

    The centre is that of `person_box`, scaled to the colour frame, in the higher 8 bits of the depth: to the reference,
    what is nearer than 256 units is nobody. The box has half the width and height of the colour frame.

    Args:
      depth: Masked depth.
      width: Width of the colour frame, pixels.
      height: Height of the colour frame, pixels.

    Returns:
      left, top, right, bottom in pixels (right and bottom exclusive), clipped at the colour frame.
    """
    mask = depth if depth.dtype == np.uint8 else (depth >> 8).astype(np.uint8)
    x, y = _person_centre(mask)
    # In this order of operations: another one rounds to another pixel now and then.
    centre = int((width / depth.shape[1]) * x), int((height / depth.shape[0]) * y)
    return _box(centre, (width // 2, height // 2), width, height)


def _person_centre(mask: UInt8[np.ndarray, "h w"]) -> tuple[int, int]:
    """Finds the centre of the person.

    That is (smallest x, smallest y) over the centres of the minimum-area rectangles around all contours larger than 500
    square pixels, in the eroded and dilated mask. A mask without such a contour, which stops the reference, has its own
    centre.
    """
    height, width = mask.shape
    mask = cv2.dilate(cv2.erode(mask, np.ones((3, 3), np.uint8)), np.ones((10, 10), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    centres = [cv2.minAreaRect(contour)[0] for contour in contours if cv2.contourArea(contour) > _PERSON_AREA]
    x, y = np.asarray(centres or [(width // 2, height // 2)]).astype(int).min(axis=0)
    return int(x), int(y)


def _box(centre: tuple[int, int], size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    left, top = max(centre[0] - size[0] // 2, 0), max(centre[1] - size[1] // 2, 0)
    return left, top, min(left + size[0], width), min(top + size[1], height)
