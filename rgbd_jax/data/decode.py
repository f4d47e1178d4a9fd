"""Encoded frames to pixels: JPEG by libjpeg-turbo in two thirds of OpenCV's time, everything else by OpenCV."""

import contextlib

import cv2
import numpy as np
import simplejpeg

_JPEG = b"\xff\xd8\xff"
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
