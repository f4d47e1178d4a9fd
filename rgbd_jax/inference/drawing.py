"""Pictures of what a network saw and where it looked; all of them RGB."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax.data import depth, transforms
from rgbd_jax.data.codec import decode_frame

HIGHEST_HEAT = 2.0  # motion heat maps lie between 0 and this
_STRONGEST = 0.6  # share of the colour where the network looked most


def shown_frame(encoded: bytes, modality: str, config: ConfigDict) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a frame of a clip as people look at it; single-channel depth in colours, red is near.

    Args:
        encoded: the frame, JPEG or PNG.
        modality: "rgb" or "depth".
        config: the experiment's config; `data.depth` is read.

    Raises:
        ValueError: the frame cannot be decoded.
    """
    frame = decode_frame(encoded, modality)
    if frame is None:
        raise ValueError(f"a {modality} frame is not a readable JPEG or PNG ({len(encoded)} bytes)")
    if frame.ndim == 2:
        grey = depth.encode_depth(depth.cut_depth(frame, config.data.depth), config.data.depth)
        return cv2.cvtColor(cv2.applyColorMap(np.ascontiguousarray(grey), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return frame


def heat_picture(heat: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a motion heat map, in [0, 2], from black over red and yellow to white."""
    grey = np.rint(np.clip(heat * (255 / HIGHEST_HEAT), 0, 255)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def film(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]], size: int, gap: int, grey: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns frames side by side, in rows.

    Args:
        rows: frames of any size, as many in each row.
        size: height and width of each frame in the picture, pixels.
        gap: between two frames, pixels.
        grey: between the frames.
    """
    step = size + gap
    picture = np.full((len(rows) * step - gap, len(rows[0]) * step - gap, 3), grey, np.uint8)
    for top, row in enumerate(rows):
        for left, frame in enumerate(row):
            picture[top * step :, left * step :][:size, :size] = resized(frame, (size, size))
    return picture


def resized(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a frame of another size (width and height in pixels), smooth whether larger or smaller."""
    smaller = size[0] < frame.shape[1]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def relative(activation: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h w"]:
    """Returns the class-activation maps of one clip as shares of their highest value (0 where there is none)."""
    highest = float(activation.max(initial=0.0))
    return activation / highest if highest > 0 else np.zeros_like(activation)


def tinted(
    frame: UInt8[np.ndarray, "h w 3"], activation: Float[np.ndarray, "h2 w2"], place: np.ndarray | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a frame with a class-activation map over it: the more a place counts, the more it is coloured.

    Args:
        frame: the frame.
        activation: shares from 0 to 1 (see `relative`).
        place: 3x3 matrix from positions in the frame to positions in what the network saw of it, both as shares of
            width and height; None where the network saw exactly this frame.
    """
    height, width = frame.shape[:2]
    if place is None:
        place = np.eye(3)
    rows, columns = activation.shape
    # From pixels of the frame to pixels of the map, positions counted from the centre of the first pixel.
    matrix = (
        np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
        @ np.diag([columns, rows, 1.0])
        @ place
        @ np.diag([1 / width, 1 / height, 1.0])
        @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    )
    padded = np.pad(activation.astype(np.float32), 1, mode="edge")  # fades to nothing outside, not inside
    shift = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1.0]])
    share = cv2.warpAffine(
        padded, (shift @ matrix)[:2], (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    ).clip(0, 1)  # h w
    colours = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    weight = _STRONGEST * share[..., None]
    return np.rint(frame * (1 - weight) + colours * weight).astype(np.uint8)


def place_in_view(config: ConfigDict, width: int, height: int) -> np.ndarray:
    """Returns the matrix from positions in a clip's frames to positions in what an evaluation sees of them.

    Args:
        config: the experiment's config; `data.transforms` and `clip.size` are read.
        width: of the frames, pixels.
        height: of the frames, pixels.

    Returns:
        A 3x3 matrix for `tinted`: both positions are shares of width and height.
    """
    transform = transforms.draw_transform(config, None)
    size = config.clip.size
    return np.diag([1 / size, 1 / size, 1.0]) @ transform.matrix(width, height) @ np.diag([width, height, 1.0])
