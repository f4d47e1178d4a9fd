"""Encoding and decoding of frames in the formats that prepared data sets hold.

JPEG is decoded by libjpeg-turbo, in two thirds of OpenCV's time. 16-bit depth is PNG without compression: decoding it
takes a fifth of the time, and the data set's files are compressed as a whole anyway.
"""

import contextlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8, UInt16

_JPEG_QUALITY = 95
_OPENCV_FLAGS = {
    "rgb": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "depth": cv2.IMREAD_UNCHANGED,
}


def decode_frame(encoded: bytes, modality: str) -> np.ndarray | None:
    """Decodes a JPEG or PNG frame.

    Returns:
        RGB: uint8[h w 3], whatever is stored. Depth: what is stored, usually uint8[h w], uint16[h w] or uint8[h w 3]
        (in the order red, green, blue). None if the frame cannot be decoded.
    """
    if encoded.startswith(b"\xff\xd8\xff"):
        with contextlib.suppress(ValueError):  # OpenCV repairs small flaws and refuses truncated files
            colour_space = simplejpeg.decode_jpeg_header(encoded)[2]
            if colour_space == "Gray" and modality == "depth":
                return simplejpeg.decode_jpeg(encoded, "GRAY")[..., 0]
            if colour_space in ("YCbCr", "RGB", "Gray"):  # libjpeg-turbo does not convert the others to RGB
                return simplejpeg.decode_jpeg(encoded, "RGB")
    if not encoded:
        return None
    frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS[modality])
    if frame is None or modality == "rgb" or frame.shape[2:] != (3,) or frame.dtype != np.uint8:
        return frame
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def encode_jpeg(frame: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes a grey or BGR frame as JPEG, in the quality used for the frames of videos."""
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def encode_depth(depth: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]) -> bytes:
    """Encodes a depth frame losslessly, as PNG that decodes fast."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", depth, fast)[1].tobytes()
