"""What a clip shows beside the motion: the hand's looks, the arm, the background and the distractors.

All draws here are the same for every class, and everything that moves here moves out and back
(`motions.out_and_back`): it is the same played backwards, so that only the hand knows the direction of time.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from rgbd_jax.datasets.rgbd_demo.motions import HEIGHT, WIDTH, HandMotion, Pair, draw_motion, out_and_back

# How hard the scenes are. Lengths in pixels, ranges are uniform draws.
PALM_RADIUS = (6.5, 8.0)
FINGER_LENGTH = (1.3, 1.6)  # beyond the palm, in palm radii
FINGER_WIDTH = (0.46, 0.56)  # in palm radii
FINGERS = (3, 5)  # that are stretched, thumb included, both ends included
HAND_TILT_DEGREES = 15.0
HAND_BRIGHTNESS = (150, 235)  # of the brightest of the three colour channels
SLEEVE_BRIGHTNESS = (70, 150)
PATTERN_PERIOD = (5.0, 7.0)  # of the stripes on the hand's back
ELBOW = (WIDTH / 2, HEIGHT + 14)
ELBOW_JITTER = (6.0, 4.0)
ELBOW_DEPTH_MM = 1200
BACKGROUND_BRIGHTNESS = (40, 120)  # mean
BACKGROUND_CONTRAST = (10, 28)  # standard deviation of the texture
BACKGROUND_DEPTH_MM = (1900, 2400)
BACKGROUND_SLOPE_MM = 100  # most that the wall is nearer at a border than in the middle
BACKGROUND_BOXES = (0, 3)  # furniture, both ends included
BOX_SIZE = (8, 30)
BOX_DEPTH_MM = (50, 200)  # in front of the wall
BACKGROUND_MARGIN = 4  # drawn beyond every border of the frame, for the swaying camera
SWAY = 3.0  # most that the background moves; half of the clips have a still camera
DISTRACTORS = (1, 2)  # both ends included
DISTRACTOR_RADIUS = (3.0, 5.0)
DISTRACTOR_SWING = (4.0, 14.0)
DISTRACTOR_CYCLES = (0.4, 1.2)  # swings in half a clip
DISTRACTOR_BRIGHTNESS = (60, 150)
DISTRACTOR_DEPTH_MM = (1300, 1700)


@dataclasses.dataclass(frozen=True)
class HandLooks:
    """A hand as it appears in one clip.

    Attributes:
        palm_radius: pixels.
        finger_length: beyond the palm, pixels.
        finger_width: pixels.
        stretched: which fingers are not folded, thumb first.
        mirrored: whether the thumb is on the right.
        tilt: radians, clockwise.
        colour: RGB, 0 to 255.
        stripe_colours: the two colours of the back, RGB.
        stripe_period: pixels.
        turn_direction: radians, the direction in which the back comes into view.
        sleeve_colour: RGB.
        elbow: x and y, pixels, below the frame.
    """

    palm_radius: float
    finger_length: float
    finger_width: float
    stretched: tuple[bool, ...]
    mirrored: bool
    tilt: float
    colour: Float[np.ndarray, " 3"]
    stripe_colours: Float[np.ndarray, "2 3"]
    stripe_period: float
    turn_direction: float
    sleeve_colour: Float[np.ndarray, " 3"]
    elbow: Float[np.ndarray, " 2"]


@dataclasses.dataclass(frozen=True)
class Background:
    """Walls and furniture, with `BACKGROUND_MARGIN` beyond the frame, and how they sway.

    Attributes:
        colour: RGB, 0 to 255.
        depth_mm: distance from the camera.
        sway: shift of the background in every frame, pixels, x and y.
    """

    colour: Float[np.ndarray, "h_margin w_margin 3"]
    depth_mm: Float[np.ndarray, "h_margin w_margin"]
    sway: Float[np.ndarray, "t 2"]


@dataclasses.dataclass(frozen=True)
class Distractor:
    """A blob that moves behind the hand.

    Attributes:
        centre: pixels, x and y, in every frame.
        radii: pixels, of its ellipse.
        tilt_degrees: of its ellipse.
        colour: RGB, 0 to 255.
        depth_mm: distance from the camera.
    """

    centre: Float[np.ndarray, "t 2"]
    radii: tuple[float, float]
    tilt_degrees: float
    colour: Float[np.ndarray, " 3"]
    depth_mm: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that a clip shows, before sensor noise.

    Attributes:
        motion: where the hand is.
        hand: how it looks.
        background: what is behind.
        distractors: what moves between the two.
    """

    motion: HandMotion
    hand: HandLooks
    background: Background
    distractors: list[Distractor]


def draw_scene(pair: Pair, seed: np.random.SeedSequence) -> Scene:
    """Draws a scene for a pair of classes; each part has random numbers of its own.

    Args:
        pair: one of `motions.PAIRS`.
        seed: decides every draw.

    Returns:
        The scene as the first class of the pair shows it.
    """
    for_motion, for_hand, for_background, for_distractors = (np.random.default_rng(part) for part in seed.spawn(4))
    motion = draw_motion(pair, for_motion)
    frames = len(motion.centre)
    background = draw_background(frames, for_background)
    return Scene(motion, draw_hand(for_hand), background, draw_distractors(frames, for_distractors))


def draw_hand(rng: np.random.Generator) -> HandLooks:
    """Draws a hand: its size, pose, colours, and where its arm comes from."""
    radius = rng.uniform(*PALM_RADIUS)
    fingers = rng.integers(FINGERS[0], FINGERS[1] + 1)
    return HandLooks(
        palm_radius=radius,
        finger_length=radius * rng.uniform(*FINGER_LENGTH),
        finger_width=radius * rng.uniform(*FINGER_WIDTH),
        stretched=tuple(bool(rank < fingers) for rank in rng.permutation(5)),
        mirrored=bool(rng.integers(2)),
        tilt=np.radians(rng.uniform(-HAND_TILT_DEGREES, HAND_TILT_DEGREES)),
        colour=_draw_skin_or_glove(rng),
        stripe_colours=np.array([[245.0, 245.0, 240.0], [25.0, 25.0, 35.0]]),
        stripe_period=rng.uniform(*PATTERN_PERIOD),
        turn_direction=rng.uniform(0, 2 * np.pi),
        sleeve_colour=_draw_colour(SLEEVE_BRIGHTNESS, rng),
        elbow=np.asarray(ELBOW) + rng.uniform(-1, 1, 2) * ELBOW_JITTER,
    )


def draw_background(frames: int, rng: np.random.Generator) -> Background:
    """Draws a textured wall with furniture in front of it, seen by a still or swaying camera."""
    height, width = HEIGHT + 2 * BACKGROUND_MARGIN, WIDTH + 2 * BACKGROUND_MARGIN
    texture = _draw_texture(height, width, rng) * rng.uniform(*BACKGROUND_CONTRAST)
    colour = _draw_colour(BACKGROUND_BRIGHTNESS, rng) + texture[..., None] * rng.uniform(0.6, 1, 3)
    across, upright = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope = rng.uniform(-BACKGROUND_SLOPE_MM, BACKGROUND_SLOPE_MM, 2)
    wall_mm = rng.uniform(*BACKGROUND_DEPTH_MM) + slope[0] * across + slope[1] * upright
    depth_mm = wall_mm.copy()
    for _ in range(rng.integers(BACKGROUND_BOXES[0], BACKGROUND_BOXES[1] + 1)):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        box = np.s_[top : top + int(rng.integers(*BOX_SIZE)), left : left + int(rng.integers(*BOX_SIZE))]
        colour[box] = 0.4 * colour[box] + 0.6 * _draw_colour(BACKGROUND_BRIGHTNESS, rng)
        depth_mm[box] = wall_mm[box] - rng.uniform(*BOX_DEPTH_MM)
    amplitude = rng.integers(2) * rng.uniform(-SWAY, SWAY, 2)
    sway = np.outer(out_and_back(frames, rng.uniform(0.3, 1)), amplitude)
    return Background(np.clip(colour, 0, 255), depth_mm, sway)


def draw_distractors(frames: int, rng: np.random.Generator) -> list[Distractor]:
    """Draws blobs that swing to and fro anywhere in the frame."""
    return [_draw_distractor(frames, rng) for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1))]


def _draw_distractor(frames: int, rng: np.random.Generator) -> Distractor:
    direction = rng.uniform(0, 2 * np.pi)
    swing = rng.uniform(*DISTRACTOR_SWING) * np.array([np.cos(direction), np.sin(direction)])
    middle = rng.uniform((0, 0), (WIDTH, HEIGHT))
    return Distractor(
        centre=middle + np.outer(out_and_back(frames, rng.uniform(*DISTRACTOR_CYCLES)), swing),
        radii=(rng.uniform(*DISTRACTOR_RADIUS), rng.uniform(*DISTRACTOR_RADIUS)),
        tilt_degrees=rng.uniform(0, 180),
        colour=_draw_colour(DISTRACTOR_BRIGHTNESS, rng),
        depth_mm=rng.uniform(*DISTRACTOR_DEPTH_MM),
    )


def _draw_texture(height: int, width: int, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Smooth noise at three scales, mean 0, standard deviation 1."""
    texture = np.zeros((height, width))
    for cell in (4, 10, 25):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2))
        texture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (texture - texture.mean()) / texture.std()


def _draw_skin_or_glove(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """A skin tone from dark to light, or a glove of any hue."""
    if rng.integers(2):
        return rng.uniform(*HAND_BRIGHTNESS) * np.array([1.0, rng.uniform(0.68, 0.8), rng.uniform(0.5, 0.68)])
    return _draw_colour(HAND_BRIGHTNESS, rng)


def _draw_colour(brightness: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """A colour of any hue and moderate saturation whose brightest channel lies in the range given."""
    hsv = np.array([[[rng.uniform(0, 180), rng.uniform(60, 170), rng.uniform(*brightness)]]])
    rgb: UInt8[np.ndarray, "1 1 3"] = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return rgb[0, 0].astype(float)
