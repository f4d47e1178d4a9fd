"""Single-channel depth frames to the three-channel colour frames that the network sees."""

import functools

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from ml_collections import ConfigDict

ENCODINGS = ("linear", "reference_wrapped")
_PERSON_CROP = (320, 240)  # width, height, pixels
_PERSON_AREA = 500  # square pixels: smaller contours are noise


def check_settings(settings: ConfigDict) -> None:
    """Checks `config.data.depth`.

    Raises:
      ValueError: A field has a value that cannot be used; the message names it.
    """
    if settings.encoding not in ENCODINGS:
        raise ValueError(f"config.data.depth.encoding is {settings.encoding!r}; expected one of {', '.join(ENCODINGS)}")
    near, far = settings.range_mm
    if not 0 <= near < far <= 65535:
        raise ValueError(
            f"config.data.depth.range_mm is {tuple(settings.range_mm)}; expected (nearest, farthest) in millimetres "
            "with 0 <= nearest < farthest <= 65535"
        )


def colour_depth(depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], settings: ConfigDict) -> np.ndarray:
    """Turns one single-channel depth frame into a colour frame with OpenCV's JET map.

    The channels keep the order OpenCV gives them (blue, green, red), as in the reference, although all other frames
    are RGB: its checkpoints were trained so.

    Args:
      depth: Depth, 16 bit in millimetres or 8 bit in any unit, 0 where there is no measurement.
      settings: `config.data.depth`. `encoding` "linear" maps 16-bit depths from `range_mm` to 255 (nearest) .. 1
        (farthest), clipping, and takes 8-bit depths as they are; "reference_wrapped" takes 255 * depth modulo 256, in
        which depth wraps every 256 units. `reference_person_crop` cuts 320x240 pixels around the person.

    Returns:
      uint8[h w 3], smaller than the input where it was cropped.

    Raises:
      ValueError: `depth` is neither uint8[h w] nor uint16[h w].
    """
    if depth.ndim != 2 or depth.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"single-channel depth must be uint8[h w] or uint16[h w], not {depth.dtype}{list(depth.shape)}"
        )
    grey = encode_depth(depth, settings)
    if settings.reference_person_crop:
        left, top, right, bottom = person_box(grey)
        grey = grey[top:bottom, left:right]
    return cv2.applyColorMap(np.ascontiguousarray(grey), cv2.COLORMAP_JET)


def encode_depth(
    depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], settings: ConfigDict
) -> UInt8[np.ndarray, "h w"]:
    """Encodes depth in 8 bits as `settings.encoding` says (see `colour_depth`)."""
    if settings.encoding == "reference_wrapped":
        # 255 = -1 modulo 256. The reference overflows by accident, and its depth checkpoints have learnt from that.
        return np.negative(depth).astype(np.uint8)
    if depth.dtype == np.uint8:
        return depth
    return _linear_table(*settings.range_mm)[depth]


@functools.lru_cache(maxsize=8)
def _linear_table(near: int, far: int) -> UInt8[np.ndarray, " 65536"]:
    """8-bit value of every 16-bit depth: near or nearer is 255, far or farther 1, no measurement 0."""
    depth = np.arange(65536)
    table = np.rint(np.clip(1 + 254 * (far - depth) / (far - near), 1, 255)).astype(np.uint8)
    table[0] = 0
    return table


def person_box(grey: UInt8[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Finds the 320x240 box around the person in a masked depth frame, as the reference does.

    The box is centred at (smallest x, smallest y) over the centres of the minimum-area rectangles around all contours
    larger than 500 square pixels, in the eroded and dilated frame. A frame without such a contour, which stops the
    reference, takes the centre of the frame.

    Args:
      grey: Encoded depth, 0 where there is nobody.

    Returns:
      left, top, right, bottom in pixels (right and bottom exclusive), clipped at the frame.
    """
    height, width = grey.shape
    mask = cv2.dilate(cv2.erode(grey, np.ones((3, 3), np.uint8)), np.ones((10, 10), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    centres = [cv2.minAreaRect(contour)[0] for contour in contours if cv2.contourArea(contour) > _PERSON_AREA]
    x, y = np.asarray(centres or [(width // 2, height // 2)]).astype(int).min(axis=0)
    left, top = max(int(x) - _PERSON_CROP[0] // 2, 0), max(int(y) - _PERSON_CROP[1] // 2, 0)
    return left, top, min(left + _PERSON_CROP[0], width), min(top + _PERSON_CROP[1], height)
