"""Frames to bytes and back, in the formats that prepared data sets hold.

JPEG is decoded by libjpeg-turbo, in two thirds of OpenCV's time. 16-bit depth is PNG without compression: decoding it
takes a fifth of the time, and the data set's files are compressed as a whole anyway.
"""

import contextlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8, UInt16

_JPEG = b"\xff\xd8\xff"
_JPEG_QUALITY = 95
_OPENCV_FLAGS = {
    "rgb": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "depth": cv2.IMREAD_UNCHANGED,
}


def decode_frame(encoded: bytes, modality: str) -> np.ndarray | None:
    """Decodes one frame.

    Args:
      encoded: The frame as it is stored, JPEG or PNG.
      modality: "rgb" gives three channels of 8 bits whatever is stored; "depth" gives what is stored.

    Returns:
      uint8[h w 3] in the order red, green, blue; of depth also uint8[h w] or uint16[h w] and, where a depth frame is
      neither of 8 bits nor of one channel, what OpenCV makes of it. None if it cannot be decoded.
    """
    if encoded.startswith(_JPEG):
        frame = _decode_jpeg(encoded, modality)
        if frame is not None:
            return frame
    if not encoded:
        return None
    frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS[modality])
    if frame is None or modality == "rgb" or frame.shape[2:] != (3,) or frame.dtype != np.uint8:
        return frame
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _decode_jpeg(encoded: bytes, modality: str) -> np.ndarray | None:
    """Decodes a flawless JPEG; with flaws OpenCV decides, which repairs small ones and refuses what is cut off."""
    with contextlib.suppress(ValueError):
        colours = simplejpeg.decode_jpeg_header(encoded)[2]
        if colours == "Gray" and modality == "depth":
            return simplejpeg.decode_jpeg(encoded, "GRAY")[..., 0]
        if colours in ("YCbCr", "RGB", "Gray"):  # libjpeg-turbo does not turn the others into RGB
            return simplejpeg.decode_jpeg(encoded, "RGB")
    return None


def encode_jpeg(frame: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns a frame, grey or in the order blue, green, red, as JPEG of the quality that frames of videos get."""
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def encode_depth(depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]) -> bytes:
    """Returns a depth frame as PNG that keeps every bit and is decoded fast."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", depth, fast)[1].tobytes()
