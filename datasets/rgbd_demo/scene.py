"""What a clip shows beside the motion: the look of the hand, the background and the distractors.

Every class draws these from the same distributions, and whatever moves here is symmetric in time (`motions.swing`), so
that the hand alone carries the label. Lengths are in pixels, colours are RGB from 0 to 255.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from .motions import HEIGHT, WIDTH, HandMotion, Pair, draw_motion, swing

MARGIN = 4  # of the background beyond every border of the frame, for the swaying camera
ELBOW_DEPTH_MM = 1200
Colour = Float[np.ndarray, " 3"]


class Hand(NamedTuple):
    """The look of the hand and its arm in one clip."""

    palm_radius: float
    finger_length: float  # beyond the palm
    finger_width: float
    stretched: tuple[bool, ...]  # which fingers are not folded, thumb first
    mirrored: bool  # thumb on the right
    tilt: float  # radians, clockwise
    colour: Colour
    stripe_colours: Float[np.ndarray, "2 3"]  # of the back
    stripe_period: float
    turn_direction: float  # radians, where the back comes into view
    sleeve_colour: Colour
    elbow: Float[np.ndarray, " 2"]  # x and y, below the frame


class Background(NamedTuple):
    """Wall and furniture with a `MARGIN`, and how they sway."""

    colour: Float[np.ndarray, "h_margin w_margin 3"]
    depth_mm: Float[np.ndarray, "h_margin w_margin"]
    sway: Float[np.ndarray, "t 2"]


class Distractor(NamedTuple):
    """An ellipse that moves behind the hand."""

    centre: Float[np.ndarray, "t 2"]
    radii: tuple[float, float]
    tilt_degrees: float
    colour: Colour
    depth_mm: float


class Scene(NamedTuple):
    """Everything that a clip shows, before sensor noise."""

    motion: HandMotion
    hand: Hand
    background: Background
    distractors: list[Distractor]


def draw_scene(pair: Pair, seed: np.random.SeedSequence) -> Scene:
    """Draws a scene as the first class of `pair` shows it; each part has a random stream of its own."""
    motion_rng, hand_rng, background_rng, distractors_rng = map(np.random.default_rng, seed.spawn(4))
    motion = draw_motion(pair, motion_rng)
    frames = len(motion.centre)
    background = _draw_background(frames, background_rng)
    distractors = [_draw_distractor(frames, distractors_rng) for _ in range(distractors_rng.integers(1, 3))]
    return Scene(motion, _draw_hand(hand_rng), background, distractors)


def _draw_hand(rng: np.random.Generator) -> Hand:
    radius = rng.uniform(6.5, 8.0)
    fingers = rng.integers(3, 6)
    return Hand(
        palm_radius=radius,
        finger_length=radius * rng.uniform(1.3, 1.6),
        finger_width=radius * rng.uniform(0.46, 0.56),
        stretched=tuple(bool(rank < fingers) for rank in rng.permutation(5)),
        mirrored=bool(rng.integers(2)),
        tilt=np.radians(rng.uniform(-15, 15)),
        colour=_draw_skin_or_glove(rng),
        stripe_colours=np.array([[245.0, 245.0, 240.0], [25.0, 25.0, 35.0]]),
        stripe_period=rng.uniform(5.0, 7.0),
        turn_direction=rng.uniform(0, 2 * np.pi),
        sleeve_colour=_draw_colour(70, 150, rng),
        elbow=np.array([WIDTH / 2, HEIGHT + 14]) + rng.uniform(-1, 1, 2) * (6.0, 4.0),
    )


def _draw_background(frames: int, rng: np.random.Generator) -> Background:
    """A textured wall with furniture in front of it, seen by a still or swaying camera."""
    height, width = HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN
    texture = _draw_texture(height, width, rng) * rng.uniform(10, 28)
    colour = _draw_colour(40, 120, rng) + texture[..., None] * rng.uniform(0.6, 1, 3)
    across, upright = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope = rng.uniform(-100, 100, 2)
    wall_mm = rng.uniform(1900, 2400) + slope[0] * across + slope[1] * upright
    depth_mm = wall_mm.copy()
    for _ in range(rng.integers(4)):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        box = np.s_[top : top + int(rng.integers(8, 30)), left : left + int(rng.integers(8, 30))]
        colour[box] = 0.4 * colour[box] + 0.6 * _draw_colour(40, 120, rng)
        depth_mm[box] = wall_mm[box] - rng.uniform(50, 200)
    amplitude = rng.integers(2) * rng.uniform(-3, 3, 2)  # half of the clips have a still camera
    sway = np.outer(swing(frames, rng.uniform(0.3, 1)), amplitude)
    return Background(np.clip(colour, 0, 255), depth_mm, sway)


def _draw_distractor(frames: int, rng: np.random.Generator) -> Distractor:
    direction = rng.uniform(0, 2 * np.pi)
    amplitude = rng.uniform(4.0, 14.0) * np.array([np.cos(direction), np.sin(direction)])
    middle = rng.uniform((0, 0), (WIDTH, HEIGHT))
    return Distractor(
        centre=middle + np.outer(swing(frames, rng.uniform(0.4, 1.2)), amplitude),
        radii=(rng.uniform(3.0, 5.0), rng.uniform(3.0, 5.0)),
        tilt_degrees=rng.uniform(0, 180),
        colour=_draw_colour(60, 150, rng),
        depth_mm=rng.uniform(1300, 1700),
    )


def _draw_texture(height: int, width: int, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Smooth noise at three scales, mean 0, standard deviation 1."""
    texture = np.zeros((height, width))
    for cell in (4, 10, 25):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2))
        texture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (texture - texture.mean()) / texture.std()


def _draw_skin_or_glove(rng: np.random.Generator) -> Colour:
    """A skin tone from dark to light, or a glove of any hue."""
    if rng.integers(2):
        return rng.uniform(150, 235) * np.array([1.0, rng.uniform(0.68, 0.8), rng.uniform(0.5, 0.68)])
    return _draw_colour(150, 235, rng)


def _draw_colour(darkest: int, brightest: int, rng: np.random.Generator) -> Colour:
    """A colour of any hue and moderate saturation; the limits are those of its brightest channel."""
    hsv = np.array([[[rng.uniform(0, 180), rng.uniform(60, 170), rng.uniform(darkest, brightest)]]])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(float)
