"""A clip of the demo as a function of (seed, split, pair, index)."""

from typing import NamedTuple

import numpy as np

from .motions import CLASS_NAMES, PAIRS
from .rendering import render
from .scene import draw_scene
from .sensors import measure, photograph

SPLITS = ("train", "validation")


class Clip(NamedTuple):
    """One clip as it is stored: JPEG and 16-bit PNG (millimetres, 0 for no measurement), one a frame."""

    name: str
    label: int
    rgb: list[bytes]
    depth: list[bytes]


def make_pair(seed: int, split: str, pair: int, index: int) -> tuple[Clip, Clip]:
    """Makes one clip of either class of `PAIRS[pair]`: the same scene and noise, one or both modalities reversed.

    Args:
        seed: decides the data set.
        split: one of `SPLITS`, which share no random number.
        pair: index into `PAIRS`.
        index: number of the clip among those of its class and split.

    Raises:
        ValueError: there is no such split or pair.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not in rgbd_demo; it has {SPLITS}")
    if not 0 <= pair < len(PAIRS):
        raise ValueError(f"pair {pair} is not in rgbd_demo; it has 0 to {len(PAIRS) - 1}")
    scene_seed, rgb_seed, depth_seed = np.random.SeedSequence((seed, SPLITS.index(split), pair, index)).spawn(3)
    rgb, depth_mm = render(draw_scene(PAIRS[pair], scene_seed))
    frames = {
        "rgb": photograph(rgb, np.random.default_rng(rgb_seed)),
        "depth": measure(depth_mm, np.random.default_rng(depth_seed)),
    }
    is_reversed = PAIRS[pair].reversed_modalities
    second = {modality: each[::-1] if modality in is_reversed else each for modality, each in frames.items()}
    names = [f"{CLASS_NAMES[label]}_{index:04d}" for label in (2 * pair, 2 * pair + 1)]
    return Clip(names[0], 2 * pair, **frames), Clip(names[1], 2 * pair + 1, **second)
