"""A picture of some clips as the network sees them: frames and heat maps of each modality, one clip below the other."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax.data.loader import Batch, eval_batches, train_batches
from rgbd_jax.data.source import ClipRecord, PreparedSplit
from rgbd_jax.modalities import STREAMS
from rgbd_jax.models.heat_map import heat_maps

_GAP = 4  # pixels between two pictures
_RULE = 6  # pixels, below a clip
_SMALLEST = 112  # pixels: smaller frames are enlarged
_TEXT_WIDTH = 190  # pixels
_TEXT_SIZE = 14  # pixels
_TEXT_WEIGHT = 400
_LINE_HEIGHT = 19  # pixels
_HIGHEST_HEAT = 2.0  # heat maps lie between 0 and this


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Some records of a split: a `ClipSource`."""

    source: PreparedSplit
    records: Sequence[int]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        return self.source[self.records[operator.index(index)]]


def draw_contact_sheet(
    source: PreparedSplit, config: ConfigDict, *, clips: int, frames: int = 8, seed: int = 0, augmented: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a random sample of clips, as `rgbd_jax.data.loader` loads them.

    Every modality of `config.modality` has a row of frames, single-channel depth in colours, and below it a row of the
    heat maps that go with them, white at the highest heat there can be. Name and class stand beside, and how many
    frames the network sees of how many there are.

    Args:
        source: the prepared clips.
        config: the experiment's settings: `stream`, `clip`, `data.transforms`, `data.depth`, `model.frp_window`.
        clips: number of clips, all if there are not as many.
        frames: number of frames of a clip, evenly spaced, the last of the sampled ones among them.
        seed: decides which clips, and what is drawn for the training transform.
        augmented: use the training transform instead of evaluation's.

    Returns:
        The picture, in RGB.

    Raises:
        ValueError: a setting cannot be used, or a clip cannot be read.
    """
    if clips < 1 or frames < 1:
        raise ValueError(f"a contact sheet needs at least 1 clip and 1 frame, found {clips} and {frames}")
    rng = np.random.default_rng(seed)
    records = np.sort(rng.choice(len(source), min(clips, len(source)), replace=False)).tolist()
    sample = _Sample(source, records)
    config = config.copy_and_resolve_references()
    config.seed = seed
    rows = []
    for place, batch in sorted(_batches(sample, config, augmented), key=lambda each: each[0]):
        clip = sample[place]
        rows.append(_draw_clip(batch, config, frames, clip, source.class_names[clip.label]))
    return np.concatenate(rows)


def _batches(sample: _Sample, config: ConfigDict, augmented: bool) -> list[tuple[int, Batch]]:
    """Returns every clip of a sample as a batch of its own, after its place in the sample."""
    if augmented:
        stream = train_batches(sample, config, batch_size=1)
        batches = [next(stream) for _ in range(len(sample))]
    else:
        batches = list(eval_batches(sample, config, batch_size=1))
    return [(int(batch["record"][0]), batch) for batch in batches]


def _draw_clip(
    batch: Batch, config: ConfigDict, frames: int, clip: ClipRecord, class_name: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the rows of all modalities of one clip."""
    rows: list[np.ndarray] = []
    for modality in STREAMS[config.modality]:
        seen = batch["frames"][modality]  # 1 t h w 3
        count = seen.shape[1]
        shown = np.arange(1, frames + 1) * count // frames - 1  # the last ones of equal parts
        shown = np.unique(shown.clip(0))
        heat = np.asarray(heat_maps(seen, config.model.frp_window))[0, shown]
        title = [] if rows else [clip.name, f"{clip.label}: {class_name}", ""]
        sampled = f"sampled from {len(clip.frames[modality])}"
        lines = [*title, f"{modality}: {len(shown)} of {count} frames", sampled]
        rows.append(_draw_row(seen[0, shown], lines, frames))
        rows.append(
            _draw_row(_grey(heat), [f"heat maps of {modality},", f"each of {config.model.frp_window} frames"], frames)
        )
    rule = np.full((_RULE, rows[0].shape[1], 3), 160, np.uint8)
    return np.concatenate([*rows, rule])


def _grey(heat: Float[np.ndarray, "n h w 1"]) -> UInt8[np.ndarray, "n h w 3"]:
    return np.repeat(np.rint(heat * (255 / _HIGHEST_HEAT)).astype(np.uint8), 3, axis=-1)


def _draw_row(
    pictures: UInt8[np.ndarray, "n h w 3"], lines: Sequence[str], places: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws pictures side by side, enlarged if they are small, with lines of text to the left of them."""
    scale = -(-_SMALLEST // pictures.shape[1])
    pictures = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    size = pictures.shape[1]
    row = np.full((size + _GAP, _TEXT_WIDTH + places * (size + _GAP), 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        left = _TEXT_WIDTH + place * (size + _GAP)
        row[:size, left : left + size] = picture
    font = cv2.FontFace("sans")
    for number, part in enumerate(part for line in lines for part in _wrapped(line, font)):
        start = (_GAP, (number + 1) * _LINE_HEIGHT)
        row = cv2.putText(row, part, start, (0, 0, 0), font, _TEXT_SIZE, _TEXT_WEIGHT)[1]
    return row


def _wrapped(line: str, font: cv2.FontFace) -> list[str]:
    """Breaks a line where it is too long for the text's column; names have no blanks to break at."""
    parts = [""]
    for letter in line:
        if _text_width(parts[-1] + letter, font) > _TEXT_WIDTH - 2 * _GAP:
            parts.append("")
        parts[-1] += letter
    return parts


def _text_width(text: str, font: cv2.FontFace) -> int:
    return cv2.getTextSize((10_000, 100), text, (0, 50), font, _TEXT_SIZE, _TEXT_WEIGHT)[2]
