"""Frames: encoding and decoding them, and single-channel depth: its colours and the crop around the person.

JPEG is decoded by libjpeg-turbo, in two thirds of OpenCV's time. 16-bit depth is PNG without compression: decoding it
takes a fifth of the time, and the data set's files are compressed as a whole anyway.
"""

import contextlib
import functools

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8, UInt16
from ml_collections import ConfigDict

_JPEG_QUALITY = 95
_OPENCV_FLAGS = {
    "rgb": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "depth": cv2.IMREAD_UNCHANGED,
}
_PERSON_CROP = (320, 240)  # width, height, pixels
_PERSON_AREA = 500  # square pixels: smaller contours are noise

Depth = UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""16 bit in millimetres or 8 bit in any unit; 0 where there is no measurement."""
Coloured = UInt8[np.ndarray, "h w 3"]
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""


def decode_frame(encoded: bytes, modality: str) -> Coloured | Depth:
    """Decodes a JPEG or PNG frame to RGB, whatever is stored, or to single-channel depth if that is stored.

    Raises:
        ValueError: the frame cannot be decoded, or has depth in several channels that are no colours.
    """
    if encoded.startswith(b"\xff\xd8\xff"):
        with contextlib.suppress(ValueError):  # OpenCV repairs small flaws and refuses truncated files
            colour_space = simplejpeg.decode_jpeg_header(encoded)[2]
            if colour_space == "Gray" and modality == "depth":
                return simplejpeg.decode_jpeg(encoded, "GRAY")[..., 0]
            if colour_space in ("YCbCr", "RGB", "Gray"):  # libjpeg-turbo does not convert the others to RGB
                return simplejpeg.decode_jpeg(encoded, "RGB")
    frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS[modality]) if encoded else None
    if frame is None:
        raise ValueError(f"the {modality} frame is not a readable JPEG or PNG ({len(encoded)} bytes)")
    if modality == "rgb" or (frame.ndim == 2 and frame.dtype in (np.uint8, np.uint16)):
        return frame
    if frame.shape[2:] != (3,) or frame.dtype != np.uint8:
        found = f"{frame.dtype}{list(frame.shape)}"
        raise ValueError(f"the depth frame is {found}; expected one channel of 8 or 16 bit, or three of 8 bit")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def encode_jpeg(frame: UInt8[np.ndarray, "h w"] | Coloured) -> bytes:
    """Encodes a grey or BGR frame as JPEG, in the quality used for the frames of videos."""
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def encode_depth(depth: Depth) -> bytes:
    """Encodes a depth frame losslessly, as PNG that decodes fast."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", depth, fast)[1].tobytes()


def colour_depth(depth: Depth | Coloured, settings: ConfigDict) -> Coloured:
    """Maps depth to three channels by `config.data.depth`, pixel by pixel; frames in colour stay as they are.

    The channels of JET keep the order OpenCV gives them (blue, green, red), as in the reference, although all other
    frames are RGB: its checkpoints were trained so.
    """
    if depth.ndim == 3:
        return depth
    grey = grey_depth(depth, settings)
    if settings.colour_map == "grey":
        return cv2.merge([grey, grey, grey])
    return cv2.applyColorMap(np.ascontiguousarray(grey), cv2.COLORMAP_JET)


def grey_depth(depth: Depth, settings: ConfigDict) -> UInt8[np.ndarray, "h w"]:
    """Maps depth to 8 bits by `config.data.depth.encoding`.

    "linear" maps 16-bit depth from `range_mm` to 255 (nearest) .. 1 (farthest), clipping, and keeps 8-bit depth.
    "reference_wrapped" takes 255 * depth modulo 256, which wraps every 256 units: the reference overflows by accident,
    and its depth checkpoints were trained so.
    """
    if settings.encoding == "reference_wrapped":
        return np.negative(depth).astype(np.uint8)  # 255 = -1 modulo 256
    if depth.dtype == np.uint8:
        return depth
    return cv2.LUT(depth, _linear_table(*settings.range_mm))  # a quarter of the time of indexing


@functools.lru_cache(maxsize=8)
def _linear_table(near: int, far: int) -> UInt8[np.ndarray, " 65536"]:
    depth = np.arange(65536)
    table = np.rint(np.clip(1 + 254 * (far - depth) / (far - near), 1, 255)).astype(np.uint8)
    table[0] = 0
    return table


def crop_person(depth: Depth | Coloured, settings: ConfigDict) -> Depth | Coloured:
    """Cuts single-channel depth to 320x240 around the person if `config.data.depth.reference_person_crop` is set."""
    if depth.ndim == 3 or not settings.reference_person_crop:
        return depth
    left, top, right, bottom = person_box(grey_depth(depth, settings))
    return depth[top:bottom, left:right]


def person_box(mask: UInt8[np.ndarray, "h w"], colour_size: tuple[int, int] | None = None) -> Box:
    """Finds the 320x240 box around the person, as the reference does, clipped at the frame; `mask` is 0 elsewhere.

    The box is centred on (smallest x, smallest y) of the centres of the minimum-area rectangles around all contours
    that are not noise; without such a contour, which stops the reference, on the centre of the frame. With
    `colour_size` it is that box in a colour frame of (width, height), and has half its width and height.
    """
    height, width = mask.shape
    opened = cv2.dilate(cv2.erode(mask, np.ones((3, 3), np.uint8)), np.ones((10, 10), np.uint8))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    centres = [cv2.minAreaRect(contour)[0] for contour in contours if cv2.contourArea(contour) > _PERSON_AREA]
    x, y = np.asarray(centres or [(width // 2, height // 2)]).astype(int).min(axis=0).tolist()
    size = _PERSON_CROP
    if colour_size is not None:
        # In this order of operations: another one rounds to another pixel now and then.
        x, y = int((colour_size[0] / width) * x), int((colour_size[1] / height) * y)
        width, height = colour_size
        size = width // 2, height // 2
    left, top = max(x - size[0] // 2, 0), max(y - size[1] // 2, 0)
    return left, top, min(left + size[0], width), min(top + size[1], height)
