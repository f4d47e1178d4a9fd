"""Example clips: hand motions of the demo, rendered, that are not in its data set."""

import importlib

import numpy as np
from jaxtyping import Shaped

from rgbd_jax.data.frames import decode_frame

SEED = 2026  # the demo's data set has another one


def example(motion: str = "swipe_left", number: int = 0) -> dict[str, Shaped[np.ndarray, "t h w *c"]]:
    """Renders a clip of a hand motion; the same on every call.

    Args:
        motion: one of the demo's 12 classes.
        number: chooses scene, hand, noise and length, from 0 on.

    Returns:
        "rgb", uint8 t h w 3, and "depth", uint16 t h w in millimetres.

    Raises:
        ValueError: there is no such motion.
    """
    clips = importlib.import_module("rgbd_jax.datasets.rgbd_demo.clips")
    if motion not in clips.CLASS_NAMES:
        raise ValueError(f"motion={motion!r}: expected one of {', '.join(clips.CLASS_NAMES)}")
    label = clips.CLASS_NAMES.index(motion)
    clip = clips.make_pair(SEED, "validation", label // 2, number)[label % 2]
    encoded = {"rgb": clip.rgb, "depth": clip.depth}
    return {modality: np.stack([decode_frame(x, modality) for x in frames]) for modality, frames in encoded.items()}
