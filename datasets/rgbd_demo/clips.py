"""A clip of the data set as a function of (seed, split, index)."""

import dataclasses

import numpy as np
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES, PAIRS
from rgbd_jax.datasets.rgbd_demo.rendering import render
from rgbd_jax.datasets.rgbd_demo.scene import draw_scene
from rgbd_jax.datasets.rgbd_demo.sensors import measure, photograph

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip, as it is stored.

    Attributes:
        name: unique in its split.
        label: place of its class in `CLASS_NAMES`.
        rgb: one JPEG a frame.
        depth: one PNG of 16 bits a frame, in millimetres, 0 where there is no measurement; as many as `rgb`.
    """

    name: str
    label: int
    rgb: list[bytes]
    depth: list[bytes]


def make_pair(seed: int, split: str, pair: int, index: int) -> tuple[Clip, Clip]:
    """Makes a clip of either class of a pair: the same scene and the same noise, one or both streams played backwards.

    Args:
        seed: decides the data set.
        split: one of `SPLITS`; splits share no random number.
        pair: place in `PAIRS`.
        index: number of the clip among those of its class and split.

    Returns:
        The clip of the pair's first and of its second class.

    Raises:
        ValueError: if there is no such split or pair.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not in rgbd_demo; it has {SPLITS}")
    if not 0 <= pair < len(PAIRS):
        raise ValueError(f"pair {pair} is not in rgbd_demo; it has 0 to {len(PAIRS) - 1}")
    for_scene, for_colour, for_depth = np.random.SeedSequence((seed, SPLITS.index(split), pair, index)).spawn(3)
    rgb, depth_mm = render(draw_scene(PAIRS[pair], for_scene))
    streams = {
        "rgb": photograph(rgb, np.random.default_rng(for_colour)),
        "depth": measure(depth_mm, np.random.default_rng(for_depth)),
    }
    second = {
        name: frames[::-1] if name in PAIRS[pair].reversed_streams else frames for name, frames in streams.items()
    }
    labels = (2 * pair, 2 * pair + 1)
    names = [f"{CLASS_NAMES[label]}_{index:04d}" for label in labels]
    return Clip(names[0], labels[0], **streams), Clip(names[1], labels[1], **second)
