"""Film strips of clips as pictures inside the page: frames, motion heat and where the network looked."""

import base64
import dataclasses
from collections.abc import Sequence

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from rgbd_jax.tools.report.heads import NAMES
from rgbd_jax.tools.report.looked_at import ClipExplanation

FRAMES = 8  # of a strip
SIZE = 88  # pixels of a frame
GAP = 3  # pixels between two frames
FILM = 24  # grey between the frames
QUALITY = 82


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a film strip.

    Attributes:
        title: what it shows.
        picture: data URI of a JPEG, frames side by side.
        description: the same in words.
    """

    title: str
    picture: str
    description: str


@dataclasses.dataclass(frozen=True)
class Strip:
    """A film strip of one clip.

    Attributes:
        numbers: the frames that are shown, counted from 1 as the network sees them.
        width: of all pictures, pixels.
        height: of all pictures, pixels.
        rows: rows, the modalities one after the other.
        weights: title and recoupling weights of all frames of each modality, as shares of the highest.
    """

    numbers: tuple[int, ...]
    width: int
    height: int
    rows: tuple[Row, ...]
    weights: tuple[tuple[str, tuple[float, ...]], ...]


def draw_strip(clip: ClipExplanation, name: str) -> Strip:
    """Draws the film strip of a clip.

    Args:
        clip: the clip.
        name: what it is called.
    """
    from rgbd_jax.inference import drawing  # imports JAX

    rows: list[Row] = []
    weights = []
    count = len(next(iter(clip.seen.values())).frames)
    shown = shown_frames(count)
    for modality, seen in clip.seen.items():
        kind = NAMES[modality].split()[0]  # "RGB" or "depth"
        told = f"frames {', '.join(str(i + 1) for i in shown)} of {name}"
        frames = [seen.frames[i] for i in shown]
        rows.append(Row(kind, _data_uri(frames), f"{kind} {told}"))
        if seen.heat is not None:
            heat = [drawing.heat_picture(seen.heat[i]) for i in shown]
            rows.append(Row(f"{kind} motion", _data_uri(heat), f"Heat map of the motion, {kind} {told}"))
        share = drawing.relative(seen.activation)
        small = [drawing.resized(frame, (SIZE, SIZE)) for frame in frames]
        looked = [drawing.tinted(frame, share[i]) for frame, i in zip(small, shown, strict=True)]
        rows.append(Row(f"{kind} evidence", _data_uri(looked), f"Class-activation map, {kind} {told}"))
        if seen.weights is not None:
            highest = max(float(seen.weights.max()), 1e-9)
            weights.append((f"{kind} weights", tuple(round(float(w) / highest, 3) for w in seen.weights)))
    width = len(shown) * (SIZE + GAP) - GAP
    return Strip(tuple(i + 1 for i in shown), width, SIZE, tuple(rows), tuple(weights))


def shown_frames(count: int) -> list[int]:
    """Returns which of `count` frames are shown: the middle ones of equal parts, counted from 0."""
    shown = min(FRAMES, count)
    return [(2 * part + 1) * count // (2 * shown) for part in range(shown)]


def _data_uri(frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> str:
    from rgbd_jax.inference import drawing  # imports JAX

    strip = drawing.film([frames], SIZE, GAP, FILM)
    encoded = simplejpeg.encode_jpeg(strip, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
