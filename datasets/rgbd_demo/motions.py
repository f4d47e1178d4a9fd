"""The 12 classes of the demo and the path of the hand in each. Lengths are in pixels, times are fractions of a clip.

The classes form six pairs that share one motion. The first class of a pair plays it forwards, the second plays one
modality or both backwards. Temporal order alone separates the two classes of a pair, and a modality that is not
reversed does not separate them at all.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 80, 60  # of a frame
FRAMES = (20, 32)  # shortest and longest clip


class Pair(NamedTuple):
    """Two classes with one motion; the second plays `reversed_modalities` backwards."""

    first: str
    second: str
    reversed_modalities: tuple[str, ...] = ("rgb", "depth")


PAIRS = (
    Pair("swipe_left", "swipe_right"),
    Pair("swipe_up", "swipe_down"),
    Pair("circle_clockwise", "circle_counterclockwise"),
    Pair("grab", "release"),
    Pair("push", "pull", ("depth",)),
    Pair("turn_to_back", "turn_to_palm", ("rgb",)),
)
CLASS_NAMES = tuple(name for pair in PAIRS for name in (pair.first, pair.second))


class HandMotion(NamedTuple):
    """The hand in every frame of a clip, as the first class of a pair moves it."""

    centre: Float[np.ndarray, "t 2"]  # of the palm, x and y
    openness: Float[np.ndarray, " t"]  # 1 with all fingers stretched, 0 for a fist
    turned: Float[np.ndarray, " t"]  # fraction of the hand that shows its patterned back
    depth_mm: Float[np.ndarray, " t"]  # distance from the camera


def swing(frames: int, cycles: float) -> Float[np.ndarray, " t"]:
    """Returns an oscillation in [-1, 1] that is symmetric in time, with `cycles` periods in half a clip."""
    from_middle = np.abs(np.linspace(-1, 1, frames))
    return np.cos(2 * np.pi * cycles * from_middle)


def draw_motion(pair: Pair, rng: np.random.Generator) -> HandMotion:
    """Draws the length of a clip and the motion of the hand in it."""
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    progress = _draw_progress(frames, rng)
    in_place = pair.first in ("grab", "push", "turn_to_back")
    jitter = (14.0, 7.0) if in_place else (3.0, 2.0)
    centre = np.array([WIDTH / 2, HEIGHT / 2 + 3]) + rng.uniform(-1, 1, 2) * jitter + _draw_tremor(frames, rng)
    openness = np.ones(frames)
    turned = np.full(frames, float(rng.integers(2)))  # either side, so that the side alone separates no classes
    depth_mm = np.full(frames, rng.uniform(700, 1050))
    match pair.first:
        case "swipe_left":
            centre = centre + _draw_swipe(progress, rng.uniform(34.0, 42.0), rng) * (-1, 1)
        case "swipe_up":
            centre = centre + _draw_swipe(progress, rng.uniform(20.0, 25.0), rng)[:, ::-1] * (1, -1)
        case "circle_clockwise":  # y points down, so a growing angle is clockwise
            angle = 2 * np.pi * (rng.uniform() + rng.uniform(1.0, 1.5) * progress)
            centre = centre + rng.uniform(10.0, 13.0) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        case "grab":
            openness = 1 - progress
        case "push":
            depth_mm = rng.uniform(600, 720) + rng.uniform(350, 480) * (1 - progress)
        case "turn_to_back":
            turned = progress
    return HandMotion(centre, openness, turned, depth_mm)


def _draw_progress(frames: int, rng: np.random.Generator) -> Float[np.ndarray, " t"]:
    """Rises from 0 to 1 in a part of the clip that is as likely early as late, so that rests carry no label."""
    duration = rng.uniform(0.6, 0.95)
    start = rng.uniform(0, 1 - duration)
    time = np.clip((np.linspace(0, 1, frames) - start) / duration, 0, 1)
    return time * time * (3 - 2 * time)


def _draw_swipe(progress: Float[np.ndarray, " t"], length: float, rng: np.random.Generator) -> Float[np.ndarray, "t 2"]:
    """A bent line through the origin, along the first axis."""
    bend = rng.uniform(-4.0, 4.0)
    return np.stack([length * (progress - 0.5), bend * (4 * progress * (1 - progress) - 0.5)], axis=1)


def _draw_tremor(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "t 2"]:
    swings = [rng.choice((-1, 1)) * rng.uniform(0.2, 0.9) * swing(frames, rng.uniform(0.5, 2.0)) for _ in "xy"]
    return np.stack(swings, axis=1)
