"""Pictures of what a model saw, and of the evidence for its prediction; all of them RGB."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax.data import transforms
from rgbd_jax.data.frames import crop_person, decode_frame, grey_depth
from rgbd_jax.inference.predictor import Prediction
from rgbd_jax.sampling import sample_frames

MAX_HEAT = 2.0  # motion heat maps lie between 0 and this
MAX_OPACITY = 0.6  # of a class-activation map, where the evidence is strongest
STRIP_FRAMES = 8
MIN_SIDE = 320  # pixels of a drawing's longer side: smaller frames are enlarged
HALF_PIXEL = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])

Picture = UInt8[np.ndarray, "h w 3"]


def shown_frame(encoded: bytes, modality: str, config: ConfigDict) -> Picture:
    """Returns a JPEG or PNG frame for people to look at: single-channel depth in colours, red is near."""
    frame = decode_frame(encoded, modality)
    if frame.ndim == 2:
        grey = grey_depth(crop_person(frame, config.data.depth), config.data.depth)
        return _coloured(np.ascontiguousarray(grey), cv2.COLORMAP_JET)
    return frame


def heat_picture(heat: Float[np.ndarray, "h w"]) -> Picture:
    """Returns a motion heat map, in [0, 2], from black over red and yellow to white."""
    return _coloured(np.rint(np.clip(heat * (255 / MAX_HEAT), 0, 255)).astype(np.uint8), cv2.COLORMAP_INFERNO)


def _coloured(grey: UInt8[np.ndarray, "h w"], colour_map: int) -> Picture:
    return cv2.cvtColor(cv2.applyColorMap(grey, colour_map), cv2.COLOR_BGR2RGB)


def film(rows: Sequence[Sequence[Picture]], size: int, gap: int, grey: int) -> Picture:
    """Returns rows of frames side by side, each `size` pixels high and wide, with `gap` grey pixels between them."""
    step = size + gap
    picture = np.full((len(rows) * step - gap, len(rows[0]) * step - gap, 3), grey, np.uint8)
    for top, row in enumerate(rows):
        for left, frame in enumerate(row):
            picture[top * step :, left * step :][:size, :size] = resized(frame, (size, size))
    return picture


def strip_frames(count: int) -> list[int]:
    """Returns which of `count` frames a film strip shows: the middle ones of equal parts."""
    shown = min(STRIP_FRAMES, count)
    return [(2 * part + 1) * count // (2 * shown) for part in range(shown)]


def strip(
    frames: UInt8[np.ndarray, "t h w 3"], prediction: Prediction, index: int, modality: str, size: int
) -> dict[str, list[Picture]]:
    """Returns title -> pictures of some frames of clip `index`: what the model saw, Grad-CAM, motion (FRP)."""
    shown, evidence = strip_frames(len(frames)), relative(prediction.class_activation_map[modality][index])
    tiles = [resized(frames[i], (size, size)) for i in shown]
    rows = {"": tiles, "Grad-CAM": [tinted(tile, evidence[i]) for tile, i in zip(tiles, shown, strict=True)]}
    if prediction.heat_map:
        rows["motion"] = [heat_picture(prediction.heat_map[modality][index][i]) for i in shown]
    return rows


def resized(frame: Picture, size: tuple[int, int]) -> Picture:
    """Returns a frame at another width and height, smooth whether larger or smaller."""
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if size[0] < frame.shape[1] else cv2.INTER_CUBIC)


def relative(activation: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h w"]:
    """Returns the class-activation maps of one clip divided by their maximum; zeros stay zeros."""
    return activation / (activation.max(initial=0.0) or 1.0)


def tinted(frame: Picture, activation: Float[np.ndarray, "h2 w2"], view: np.ndarray | None = None) -> Picture:
    """Returns a frame under a class-activation map in [0, 1], more opaque where there is more evidence.

    `view` is the matrix of `model_view`; without it the model saw exactly this frame.
    """
    height, width = frame.shape[:2]
    rows, columns = activation.shape
    # The map is padded by one pixel: outside the view it fades to nothing, not inside.
    padded = np.pad(activation.astype(np.float32), 1, mode="edge")
    view = np.eye(3) if view is None else view
    matrix = HALF_PIXEL @ np.diag([columns, rows, 1.0]) @ view @ np.diag([1 / width, 1 / height, 1.0]) @ HALF_PIXEL
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    strength = cv2.warpAffine(padded, matrix[:2], (width, height), flags=flags).clip(0, 1)  # h w
    colours = _coloured(np.rint(strength * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    opacity = MAX_OPACITY * np.sqrt(strength[..., None])  # weak evidence is seen too; its colours are linear
    return np.rint(frame * (1 - opacity) + colours * opacity).astype(np.uint8)


def model_view(config: ConfigDict, width: int, height: int) -> Float[np.ndarray, "3 3"]:
    """Returns the matrix from a clip's frames to the evaluation's view of them, both in fractions of their sides."""
    size = config.clip.size
    transform = transforms.draw_transform(config, None)
    return np.diag([1 / size, 1 / size, 1.0]) @ transform.matrix(width, height) @ np.diag([width, height, 1.0])


def overlay(
    encoded: Sequence[bytes],
    modality: str,
    config: ConfigDict,
    activation: Float[np.ndarray, "t h2 w2"],
    max_side: float = np.inf,
) -> Iterator[Picture]:
    """Yields all frames of one modality under the class-activation maps, interpolated between the sampled frames.

    Frames are enlarged or shrunk so that the longer side of the first has `MIN_SIDE` to `max_side` pixels.
    """
    activation = relative(activation)
    sampled, first = np.unique(sample_frames(len(encoded), config.clip.frames, None), return_index=True)
    times = np.interp(np.arange(len(encoded)), sampled, first)
    size = None
    for content, time in zip(encoded, times, strict=True):
        frame = shown_frame(content, modality, config)
        height, width = frame.shape[:2]
        if size is None:
            scale = float(np.clip(max(height, width), MIN_SIDE, max_side)) / max(height, width)
            size = max(2, round(width * scale)), max(2, round(height * scale))
        before, fraction = int(time), time - int(time)
        after = min(before + 1, len(activation) - 1)
        between = (1 - fraction) * activation[before] + fraction * activation[after]
        yield tinted(resized(frame, size), between, model_view(config, width, height))
