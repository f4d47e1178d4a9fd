"""What a clip shows, before sensor noise: hand and arm, distractors, background; colour and depth of every frame.

Every class draws all but the motion of the hand from the same distributions, and whatever else moves is symmetric in
time (`motions.swing`), so that the hand alone carries the label. The projection is orthographic and light does not
depend on distance, so that colour carries no depth. Lengths are in pixels, colours are RGB from 0 to 255.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from .motions import HEIGHT, WIDTH, Pair, draw_motion, swing

_MARGIN = 4  # of the background beyond every border of the frame, for the swaying camera
_ELBOW_DEPTH_MM = 1200
_SCALE = 4  # shapes are drawn this much larger, then averaged: smooth borders, subpixel motion
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_FINGERS = ((-65.0, 0.8), (-26.0, 0.95), (-9.0, 1.0), (8.0, 0.95), (26.0, 0.8))  # degrees from upright, length
_STRIPES = np.array([[245.0, 245.0, 240.0], [25.0, 25.0, 35.0]])  # colours of the back of the hand
_TURN_SOFTNESS = 0.2  # width of the border between palm and back while the hand turns, in hand lengths
_X, _Y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)

Mask = Float[np.ndarray, "h w"]
Rgb = Float[np.ndarray, "h w 3"]
Canvas = UInt8[np.ndarray, "h_scaled w_scaled"]
Colour = Float[np.ndarray, " 3"]
Point = Float[np.ndarray, " 2"]


def render(pair: Pair, seed: np.random.SeedSequence) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """Draws a scene as the first class of `pair` shows it; returns RGB from 0 to 255 and distances in millimetres."""
    motion_rng, hand_rng, background_rng, distractors_rng = map(np.random.default_rng, seed.spawn(4))
    motion, hand = draw_motion(pair, motion_rng), Hand(hand_rng)
    frames = len(motion.centre)
    background = Background(frames, background_rng)
    distractors = [Distractor(frames, distractors_rng) for _ in range(distractors_rng.integers(1, 3))]
    rgb, depth_mm = np.empty((frames, HEIGHT, WIDTH, 3)), np.empty((frames, HEIGHT, WIDTH))

    def paint(t: int, cover: Mask, colour: np.ndarray, distance_mm: np.ndarray | float) -> None:
        rgb[t] = rgb[t] + cover[..., None] * (colour - rgb[t])
        depth_mm[t] = np.where(cover > 0.5, distance_mm, depth_mm[t])

    for t, (centre, hand_mm) in enumerate(zip(motion.centre, motion.depth_mm, strict=True)):
        rgb[t], depth_mm[t] = background.at(t)
        for blob in distractors:
            paint(t, blob.cover(t), blob.colour, blob.depth_mm)
        arm = hand.elbow - centre
        along_arm = np.clip(((_X - centre[0]) * arm[0] + (_Y - centre[1]) * arm[1]) / (arm @ arm), 0, 1)
        sleeve_mm = hand_mm + (_ELBOW_DEPTH_MM - hand_mm) * along_arm
        paint(t, hand.sleeve_cover(centre), hand.sleeve_colour, sleeve_mm)
        tilt = hand.tilt + 0.5 * np.arctan2(-arm[0], arm[1])  # the hand follows the arm half way
        cover = hand.cover(centre, tilt, motion.openness[t])
        paint(t, cover, hand.colour_of(cover, centre, tilt, motion.turned[t]), hand_mm)
    return rgb, depth_mm


class Hand:
    """The look of the hand and its arm in one clip."""

    def __init__(self, rng: np.random.Generator):
        self.palm_radius = rng.uniform(6.5, 8.0)
        fingers = rng.integers(3, 6)
        self.finger_length = self.palm_radius * rng.uniform(1.3, 1.6)  # beyond the palm
        self.finger_width = self.palm_radius * rng.uniform(0.46, 0.56)
        self.stretched = rng.permutation(5) < fingers  # which fingers are not folded, thumb first
        self.mirrored = bool(rng.integers(2))  # thumb on the right
        self.tilt = np.radians(rng.uniform(-15, 15))  # clockwise
        self.colour = _draw_skin_or_glove(rng)
        self.stripe_period = rng.uniform(5.0, 7.0)
        self.turn_direction = rng.uniform(0, 2 * np.pi)  # where the back comes into view
        self.sleeve_colour = _draw_colour(70, 150, rng)
        self.elbow = np.array([WIDTH / 2, HEIGHT + 14]) + rng.uniform(-1, 1, 2) * (6.0, 4.0)  # x and y, below the frame

    def sleeve_cover(self, centre: Point) -> Mask:
        """Coverage of every pixel by the arm."""
        canvas = _new_canvas()
        _line(canvas, centre, self.elbow, 1.3 * self.palm_radius)
        return _average_down(canvas)

    def cover(self, centre: Point, tilt: float, openness: float) -> Mask:
        """Coverage of every pixel by palm and fingers."""
        canvas = _new_canvas()
        radius = self.palm_radius * (0.9 + (1 - 0.9) * openness)  # a fist is smaller than a palm
        cv2.circle(canvas, _fixed(centre), _fixed_length(radius), 255, -1, cv2.LINE_AA, _SHIFT)
        for (degrees, length), stretched in zip(_FINGERS, self.stretched, strict=True):
            angle = tilt + np.radians(-degrees if self.mirrored else degrees)
            unfolded = 0.12 + (1 - 0.12) * openness * stretched
            reach = radius + self.finger_length * length * unfolded - self.finger_width / 2
            tip = centre + reach * np.array([np.sin(angle), -np.cos(angle)])
            _line(canvas, centre, tip, self.finger_width)
        return _average_down(canvas)

    def colour_of(self, cover: Mask, centre: Point, tilt: float, turned: float) -> Rgb:
        """The plain palm and the striped back, a fraction `turned` of which is in view."""
        across, upright = _X - centre[0], _Y - centre[1]
        from_wrist = across * np.sin(tilt) - upright * np.cos(tilt)
        stripe = 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * from_wrist / self.stripe_period))
        back = _STRIPES[0] + stripe[..., None] * (_STRIPES[1] - _STRIPES[0])

        reach, direction = self.palm_radius + self.finger_length, self.turn_direction
        position = (across * np.cos(direction) + upright * np.sin(direction)) / (2 * reach) + 0.5
        border = turned * (1 + 2 * _TURN_SOFTNESS) - _TURN_SOFTNESS
        in_view = np.clip((border - position) / _TURN_SOFTNESS + 0.5, 0, 1)[..., None]

        shade = 0.55 + (1 - 0.55) * cv2.GaussianBlur(cover, (0, 0), 1.2)  # darker at the border of the hand
        return shade[..., None] * (self.colour + in_view * (back - self.colour))


class Background:
    """A textured wall with furniture in front of it, seen by a still or swaying camera."""

    def __init__(self, frames: int, rng: np.random.Generator):
        height, width = HEIGHT + 2 * _MARGIN, WIDTH + 2 * _MARGIN
        texture = _draw_texture(height, width, rng) * rng.uniform(10, 28)
        colour = _draw_colour(40, 120, rng) + texture[..., None] * rng.uniform(0.6, 1, 3)
        across, upright = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        slope = rng.uniform(-100, 100, 2)
        wall_mm = rng.uniform(1900, 2400) + slope[0] * across + slope[1] * upright
        self.depth_mm = wall_mm.copy()
        for _ in range(rng.integers(4)):
            left, top = int(rng.integers(width)), int(rng.integers(height))
            box = np.s_[top : top + int(rng.integers(8, 30)), left : left + int(rng.integers(8, 30))]
            colour[box] = 0.4 * colour[box] + 0.6 * _draw_colour(40, 120, rng)
            self.depth_mm[box] = wall_mm[box] - rng.uniform(50, 200)
        self.colour = np.clip(colour, 0, 255)
        amplitude = rng.integers(2) * rng.uniform(-3, 3, 2)  # half of the clips have a still camera
        self.sway = np.outer(swing(frames, rng.uniform(0.3, 1)), amplitude)

    def at(self, t: int) -> tuple[Rgb, Mask]:
        """Colour and distance in frame `t`."""
        to_frame = np.column_stack([np.eye(2), self.sway[t] - _MARGIN])
        rgb, depth_mm = (
            cv2.warpAffine(image, to_frame, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
            for image in (self.colour, self.depth_mm)
        )
        return rgb, depth_mm


class Distractor:
    """An ellipse that moves behind the hand."""

    def __init__(self, frames: int, rng: np.random.Generator):
        direction = rng.uniform(0, 2 * np.pi)
        amplitude = rng.uniform(4.0, 14.0) * np.array([np.cos(direction), np.sin(direction)])
        middle = rng.uniform((0, 0), (WIDTH, HEIGHT))
        self.centre = middle + np.outer(swing(frames, rng.uniform(0.4, 1.2)), amplitude)
        self.radii = rng.uniform(3.0, 5.0, 2)
        self.tilt_degrees = rng.uniform(0, 180)
        self.colour = _draw_colour(60, 150, rng)
        self.depth_mm = rng.uniform(1300, 1700)

    def cover(self, t: int) -> Mask:
        """Coverage of every pixel in frame `t`."""
        canvas, centre = _new_canvas(), _fixed(self.centre[t])
        cv2.ellipse(canvas, centre, _fixed(self.radii), self.tilt_degrees, 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
        return _average_down(canvas)


def _new_canvas() -> Canvas:
    return np.zeros((HEIGHT * _SCALE, WIDTH * _SCALE), np.uint8)


def _average_down(canvas: Canvas) -> Mask:
    return cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) / 255.0


def _line(canvas: Canvas, start: Point, end: Point, width: float) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), 255, round(width * _SCALE), cv2.LINE_AA, _SHIFT)


def _fixed(point: Point) -> tuple[int, int]:
    return _fixed_length(point[0]), _fixed_length(point[1])


def _fixed_length(pixels: float) -> int:
    return round(pixels * _SCALE * (1 << _SHIFT))


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
