"""The 12 classes and the path that the hand takes in each.

The classes form six pairs. A pair has one motion: its first class plays it forwards, its second class plays one stream
or both backwards. So nothing but the order of time tells the two classes of a pair apart, and a stream that is not
played backwards does not tell them apart at all.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 80, 60  # of a frame, pixels

# How hard the motions are. Lengths in pixels, times as shares of the clip, ranges are uniform draws.
FRAMES = (20, 32)  # of a clip, both ends included
MOTION_SHARE = (0.6, 0.95)  # of the clip during which the hand moves; it rests before and after
SWIPE_ACROSS = (34.0, 42.0)  # way of a horizontal swipe
SWIPE_UPRIGHT = (20.0, 25.0)  # way of a vertical swipe
SWIPE_ARC = 4.0  # most that a swipe bends sideways
CIRCLE_RADIUS = (10.0, 13.0)
CIRCLE_TURNS = (1.0, 1.5)
MOVING_CENTRE_JITTER = (3.0, 2.0)  # across and upright: where the middle of a swipe or circle lies
RESTING_CENTRE_JITTER = (14.0, 7.0)  # the same for motions that stay in one place
CENTRE = (WIDTH / 2, HEIGHT / 2 + 3)
TREMOR = (0.2, 0.9)  # amplitude
TREMOR_CYCLES = (0.5, 2.0)  # in half a clip
HAND_DEPTH_MM = (700, 1050)  # where the hand is when its depth does not change
PUSH_NEAR_MM = (600, 720)
PUSH_WAY_MM = (350, 480)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two classes that share one motion.

    Attributes:
        first: name of the class that plays the motion forwards in both streams.
        second: name of the class that plays the streams in `reversed_streams` backwards and the other one forwards.
        reversed_streams: "rgb", "depth" or both.
    """

    first: str
    second: str
    reversed_streams: frozenset[str] = frozenset({"rgb", "depth"})


PAIRS = (
    Pair("swipe_left", "swipe_right"),
    Pair("swipe_up", "swipe_down"),
    Pair("circle_clockwise", "circle_counterclockwise"),
    Pair("grab", "release"),
    Pair("push", "pull", frozenset({"depth"})),
    Pair("turn_to_back", "turn_to_palm", frozenset({"rgb"})),
)
CLASS_NAMES = tuple(name for pair in PAIRS for name in (pair.first, pair.second))


@dataclasses.dataclass(frozen=True)
class HandMotion:
    """The hand in every frame of a clip, as the first class of a pair plays it.

    Attributes:
        centre: centre of the palm, pixels, x and y.
        openness: 1 with all fingers stretched, 0 for a fist.
        turned: share of the hand that shows its patterned back.
        depth_mm: distance from the camera.
    """

    centre: Float[np.ndarray, "t 2"]
    openness: Float[np.ndarray, " t"]
    turned: Float[np.ndarray, " t"]
    depth_mm: Float[np.ndarray, " t"]


def out_and_back(frames: int, cycles: float) -> Float[np.ndarray, " t"]:
    """Returns a swing that is the same played backwards, so that it says nothing about the direction of time.

    Args:
        frames: length t of the clip.
        cycles: swings in half a clip.

    Returns:
        Values in [-1, 1], one a frame.
    """
    from_middle = np.abs(np.linspace(-1, 1, frames))
    return np.cos(2 * np.pi * cycles * from_middle)


def draw_motion(pair: Pair, rng: np.random.Generator) -> HandMotion:
    """Draws the length of a clip and the path of the hand in it, as the first class of the pair plays it.

    Args:
        pair: one of `PAIRS`.
        rng: source of every draw.

    Returns:
        The hand in every frame.
    """
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    progress = _draw_progress(frames, rng)
    resting = pair.first in ("grab", "push", "turn_to_back")
    jitter = RESTING_CENTRE_JITTER if resting else MOVING_CENTRE_JITTER
    centre = np.asarray(CENTRE) + rng.uniform(-1, 1, 2) * jitter + _draw_tremor(frames, rng)
    openness = np.ones(frames)
    turned = np.full(frames, float(rng.integers(2)))  # either side of the hand, so that the side alone names no class
    depth_mm = np.full(frames, rng.uniform(*HAND_DEPTH_MM))
    match pair.first:
        case "swipe_left":
            centre = centre + _draw_swipe(progress, rng.uniform(*SWIPE_ACROSS), rng) * (-1, 1)
        case "swipe_up":
            centre = centre + _draw_swipe(progress, rng.uniform(*SWIPE_UPRIGHT), rng)[:, ::-1] * (1, -1)
        case "circle_clockwise":
            # The image's y axis points down: a growing angle turns clockwise for who looks at the picture.
            angle = 2 * np.pi * (rng.uniform() + rng.uniform(*CIRCLE_TURNS) * progress)
            centre = centre + rng.uniform(*CIRCLE_RADIUS) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        case "grab":
            openness = 1 - progress
        case "push":
            depth_mm = rng.uniform(*PUSH_NEAR_MM) + rng.uniform(*PUSH_WAY_MM) * (1 - progress)
        case "turn_to_back":
            turned = progress
        case name:
            raise ValueError(f"no motion for the pair that starts with class {name!r}; the pairs are {PAIRS}")
    return HandMotion(centre, openness, turned, depth_mm)


def _draw_progress(frames: int, rng: np.random.Generator) -> Float[np.ndarray, " t"]:
    """Rises from 0 to 1 during a part of the clip; as likely early as late, so that rest tells no direction of time."""
    share = rng.uniform(*MOTION_SHARE)
    start = rng.uniform(0, 1 - share)
    moment = np.clip((np.linspace(0, 1, frames) - start) / share, 0, 1)
    return moment * moment * (3 - 2 * moment)


def _draw_swipe(progress: Float[np.ndarray, " t"], way: float, rng: np.random.Generator) -> Float[np.ndarray, "t 2"]:
    """A bent line through the origin: along the first axis from -way/2 to way/2, sideways along the second."""
    bend = rng.uniform(-SWIPE_ARC, SWIPE_ARC)
    return np.stack([way * (progress - 0.5), bend * (4 * progress * (1 - progress) - 0.5)], axis=1)


def _draw_tremor(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "t 2"]:
    swings = [
        rng.choice((-1, 1)) * rng.uniform(*TREMOR) * out_and_back(frames, rng.uniform(*TREMOR_CYCLES)) for _ in "xy"
    ]
    return np.stack(swings, axis=1)
