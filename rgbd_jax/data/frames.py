"""Frames: encoding and decoding them, and single-channel depth: its colours and the crop around the person.

JPEG is decoded by libjpeg-turbo, in two thirds of OpenCV's time. Depth that is stored for speed is PNG without
compression, whose rows are copied out instead of inflated.
"""

import contextlib
import functools
import re
import struct
import zlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8, UInt16
from ml_collections import ConfigDict

from rgbd_jax.data.scratch import Scratch

MAX_PIXELS = 1 << 25  # of a frame, 8K: damaged and hostile headers claim gigabytes
_JPEG_QUALITY = 95
_OPENCV_FLAGS = {
    "rgb": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "depth": cv2.IMREAD_UNCHANGED,
}
_PERSON_CROP = (320, 240)  # width, height, pixels
_PERSON_AREA = 500  # square pixels: smaller contours are noise
# A PNG up to its rows: signature, header (width, height, bits, grey, checksum), and the begin of the compressed data.
_PNG_START = struct.Struct(">8sI4sIIB4xII4s2s")
_PNG_SIGNATURE, _ZLIB_HEADER = b"\x89PNG\r\n\x1a\n", b"\x78\x01"
# JPEG's markers (what precedes one is skipped, as by libjpeg): of a frame's size, without a length, after the header.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE, _JPEG_ENDS = frozenset([0x01, *range(0xD0, 0xD8)]), frozenset([0xD8, 0xD9, 0xDA])
_MOST_SEGMENTS = 1000  # before the size: a file of markers alone would keep us for minutes
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

Depth = UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""16 bit in millimetres or 8 bit in any unit; 0 where there is no measurement."""
Coloured = UInt8[np.ndarray, "h w c"]
"""Red, green and blue; perhaps a fourth channel that is not used, as four channels are warped faster than three."""
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""


def decode_frame(encoded: bytes | np.ndarray, modality: str, scratch: Scratch | None = None) -> Coloured | Depth:
    """Decodes a JPEG or PNG frame to RGB, whatever is stored, or to single-channel depth if that is stored.

    Arrays are decoded already. With `scratch` the frame may lie in it, until the next one is decoded there, and may
    have a fourth channel. Raises ValueError if it cannot be decoded, or has depth in channels that are no colours.
    """
    if isinstance(encoded, np.ndarray):
        return encoded
    if encoded.startswith(b"\xff\xd8\xff"):
        with contextlib.suppress(ValueError):  # OpenCV repairs small flaws and refuses truncated files
            height, width, colour_space, _ = simplejpeg.decode_jpeg_header(encoded)
            check_size(width, height)
            if colour_space == "Gray" and modality == "depth":
                return simplejpeg.decode_jpeg(encoded, "GRAY")[..., 0]
            if colour_space in ("YCbCr", "RGB", "Gray"):  # libjpeg-turbo does not convert the others to RGB
                if scratch is None:
                    return simplejpeg.decode_jpeg(encoded, "RGB")
                return simplejpeg.decode_jpeg(encoded, "RGBA", buffer=scratch.array("decoded", (height, width, 4)))
    elif modality == "depth" and (rows := _stored_rows(encoded)) is not None:
        depth = (scratch or Scratch()).array("decoded", rows.shape, rows.dtype.newbyteorder("="))
        np.copyto(depth, rows)
        return depth
    try:
        frame = decode_image(encoded, _OPENCV_FLAGS[modality])
    except ValueError as error:
        raise ValueError(f"the {modality} frame {error}") from error
    if modality == "rgb" or (frame.ndim == 2 and frame.dtype in (np.uint8, np.uint16)):
        return frame
    if frame.shape[2:] != (3,) or frame.dtype != np.uint8:
        found = f"{frame.dtype}{list(frame.shape)}"
        raise ValueError(f"the depth frame is {found}; expected one channel of 8 or 16 bit, or three of 8 bit")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def decode_image(encoded: bytes, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    """Decodes a JPEG or PNG by OpenCV's flags, h w or h w c; ValueError if it is damaged, or claims to be too large."""
    check_header(encoded)
    if encoded.startswith(_PNG_SIGNATURE) and not _has_whole_chunks(encoded):
        raise _damaged(encoded)
    with contextlib.suppress(cv2.error):  # such as one side beyond OpenCV's limit
        if (image := cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)) is not None:
            return image
    raise _damaged(encoded)


def check_header(encoded: bytes) -> None:
    """Raises ValueError if a JPEG or PNG has no valid header, or claims to be too large."""
    size = image_size(encoded)
    if size is None:
        raise _damaged(encoded)
    check_size(*size)


def _damaged(encoded: bytes) -> ValueError:
    return ValueError(f"cannot be decoded: truncated or damaged ({len(encoded):,} bytes)")


def check_size(width: int, height: int) -> None:
    """Raises ValueError if a frame that a header announces is too large."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"claims {width}x{height} pixels; up to {MAX_PIXELS:,} are read: reduce it")


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Returns width and height of a JPEG or PNG by its header; None if it has none, or is another file."""
    if encoded.startswith(_PNG_SIGNATURE):
        has_header = encoded[12:16] == b"IHDR" and len(encoded) >= 24
        return struct.unpack_from(">II", encoded, 16) if has_header else None
    at = 2 if encoded.startswith(b"\xff\xd8") else len(encoded)
    for _ in range(_MOST_SEGMENTS):
        found = _JPEG_MARKER.search(encoded, at)
        if found is None or found.end() + 7 > len(encoded):
            break
        marker, at = found[0][1], found.end()
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", encoded, at + 3)
            return width, height
        if marker in _JPEG_ENDS:
            break
        if marker not in _JPEG_BARE:
            at += max(2, int.from_bytes(encoded[at : at + 2]))
    return None


def _has_whole_chunks(png: bytes) -> bool:
    """Returns whether each chunk ends within the file: OpenCV allocates what a chunk claims, up to 4 GiB."""
    at, kind = len(_PNG_SIGNATURE), b""
    while at + 12 <= len(png) and kind != b"IEND":
        length, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        at += 12 + length  # with length, type and checksum
    return kind == b"IEND" and at <= len(png)


def encode_jpeg(frame: UInt8[np.ndarray, "h w"] | Coloured) -> bytes:
    """Encodes a grey or BGR frame as JPEG, in the quality used for the frames of videos."""
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def encode_depth(depth: Depth) -> bytes:
    """Encodes a depth frame losslessly, as PNG that `decode_frame` reads without inflating it.

    Every row is a stored block of its own, so that rows lie at equal distances.
    """
    height, width = depth.shape
    rows = np.zeros(height, _row_type(width, depth.dtype.itemsize))
    rows["length"], rows["complement"] = rows.itemsize - 5, ~np.uint16(rows.itemsize - 5)
    rows["pixels"], rows["last"][-1] = depth, 1
    lines = rows.view(np.uint8).reshape(height, -1)[:, 5:]  # filter and pixels, what the stored blocks hold
    checksum = zlib.adler32(lines.tobytes()).to_bytes(4)
    header = struct.pack(">4sIIB4x", b"IHDR", width, height, 8 * depth.dtype.itemsize)
    data = b"IDAT" + _ZLIB_HEADER + rows.tobytes() + checksum
    chunks = [(header, 13), (data, len(data) - 4)]
    encoded = [length.to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk, length in chunks]
    return b"".join([_PNG_SIGNATURE, *encoded, _PNG_END])


def _stored_rows(encoded: bytes) -> np.ndarray | None:
    """Returns the rows, high byte first, of a PNG that `encode_depth` has made; None for any other."""
    if len(encoded) < _PNG_START.size:
        return None
    signature, _, _, width, height, bits, _, length, chunk, zlib_header = _PNG_START.unpack_from(encoded)
    if width * height > len(encoded):
        return None
    row = _row_type(width, 2 if bits == 16 else 1)
    if (signature, chunk, zlib_header, length) != (_PNG_SIGNATURE, b"IDAT", _ZLIB_HEADER, height * row.itemsize + 6):
        return None
    if len(encoded) != _PNG_START.size + length - 2 + 4 + len(_PNG_END):
        return None
    rows = np.frombuffer(encoded, row, height, _PNG_START.size)
    stored = (rows["length"] == row.itemsize - 5) & (rows["filter"] == 0)
    return rows["pixels"] if stored.all() else None


@functools.lru_cache(maxsize=8)
def _row_type(width: int, pixel_bytes: int) -> np.dtype:
    """A stored block of the deflate format that holds one row: is it the last, its length twice, filter, pixels."""
    fields = [("last", "u1"), ("length", "<u2"), ("complement", "<u2"), ("filter", "u1")]
    return np.dtype([*fields, ("pixels", f">u{pixel_bytes}", (width,))])


def colour_depth(depth: Depth | Coloured, settings: ConfigDict, scratch: Scratch | None = None) -> Coloured:
    """Maps depth to four channels by `config.data.depth`, pixel by pixel; frames in colour stay as they are.

    The fourth channel is 255. The channels of JET keep the order OpenCV gives them (blue, green, red), as in the
    reference, although all other frames are RGB: its checkpoints were trained so.
    """
    if depth.ndim == 3:
        return depth
    table = _colour_table(*_encoding(settings), settings.colour_map, depth.dtype.itemsize)
    coloured = (scratch or Scratch()).array("coloured", depth.shape, np.int32)
    return cv2.LUT(depth, table, dst=coloured).view(np.uint8).reshape(*depth.shape, 4)


def grey_depth(depth: Depth, settings: ConfigDict) -> UInt8[np.ndarray, "h w"]:
    """Maps depth to 8 bits by `config.data.depth.encoding`.

    "linear" maps 16-bit depth from `range_mm` to 255 (nearest) .. 1 (farthest), clipping, and keeps 8-bit depth.
    "reference_wrapped" takes 255 * depth modulo 256, which wraps every 256 units: the reference overflows by accident,
    and its depth checkpoints were trained so.
    """
    return cv2.LUT(depth, _grey_table(*_encoding(settings), depth.dtype.itemsize))


def _encoding(settings: ConfigDict) -> tuple[str, int, int]:
    """Returns the encoding with its nearest and farthest depth, which only "linear" has."""
    return settings.encoding, *(settings.range_mm if settings.encoding == "linear" else (0, 1))


@functools.lru_cache(maxsize=8)
def _colour_table(
    encoding: str, near: int, far: int, colour_map: str, pixel_bytes: int
) -> Int32[np.ndarray, "1 values"]:
    """The four channels of every depth in one integer, which is looked up at once."""
    grey = _grey_table(encoding, near, far, pixel_bytes)
    colours = cv2.merge([grey] * 3) if colour_map == "grey" else cv2.applyColorMap(grey, cv2.COLORMAP_JET)
    return np.dstack([colours, np.full_like(grey, 255)]).view(np.int32)[..., 0]


@functools.lru_cache(maxsize=8)
def _grey_table(encoding: str, near: int, far: int, pixel_bytes: int) -> UInt8[np.ndarray, "1 values"]:
    depth = np.arange(256**pixel_bytes)[None]
    if encoding == "reference_wrapped":
        return np.negative(depth).astype(np.uint8)  # 255 = -1 modulo 256
    if pixel_bytes == 1:
        return depth.astype(np.uint8)
    table = np.rint(np.clip(1 + 254 * (far - depth) / (far - near), 1, 255)).astype(np.uint8)
    table[0, 0] = 0
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
