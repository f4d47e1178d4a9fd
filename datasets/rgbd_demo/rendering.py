"""Renders a scene without noise: colour and depth of every frame."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from .motions import HEIGHT, WIDTH
from .scene import ELBOW_DEPTH_MM, MARGIN, Hand, Scene

_SCALE = 4  # shapes are drawn this much larger, then averaged: smooth borders, subpixel motion
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_FINGERS = ((-65.0, 0.8), (-26.0, 0.95), (-9.0, 1.0), (8.0, 0.95), (26.0, 0.8))  # degrees from upright, length
_TURN_SOFTNESS = 0.2  # width of the border between palm and back while the hand turns, in hand lengths
_X, _Y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)

Mask = Float[np.ndarray, "h w"]
Rgb = Float[np.ndarray, "h w 3"]
Point = Float[np.ndarray, " 2"]


def render(scene: Scene) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """Returns all frames of a clip: RGB from 0 to 255, and the distance from the camera in millimetres.

    The projection is orthographic and light does not depend on distance, so that colour carries no depth.
    """
    frames = [_render_frame(scene, t) for t in range(len(scene.motion.centre))]
    return np.stack([rgb for rgb, _ in frames]), np.stack([depth_mm for _, depth_mm in frames])


def _render_frame(scene: Scene, t: int) -> tuple[Rgb, Mask]:
    hand, motion = scene.hand, scene.motion
    to_frame = np.column_stack([np.eye(2), scene.background.sway[t] - MARGIN])
    rgb, depth_mm = (
        cv2.warpAffine(image, to_frame, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
        for image in (scene.background.colour, scene.background.depth_mm)
    )

    def paint(cover: Mask, colour: np.ndarray, distance_mm: np.ndarray | float) -> None:
        nonlocal rgb, depth_mm
        rgb = rgb + cover[..., None] * (colour - rgb)
        depth_mm = np.where(cover > 0.5, distance_mm, depth_mm)

    for blob in scene.distractors:
        paint(_ellipse(blob.centre[t], blob.radii, blob.tilt_degrees), blob.colour, blob.depth_mm)

    centre, hand_mm = motion.centre[t], motion.depth_mm[t]
    arm = hand.elbow - centre
    along_arm = np.clip(((_X - centre[0]) * arm[0] + (_Y - centre[1]) * arm[1]) / (arm @ arm), 0, 1)
    canvas = _new_canvas()
    _line(canvas, centre, hand.elbow, 1.3 * hand.palm_radius)
    paint(_average_down(canvas), hand.sleeve_colour, hand_mm + (ELBOW_DEPTH_MM - hand_mm) * along_arm)

    tilt = hand.tilt + 0.5 * np.arctan2(-arm[0], arm[1])  # the hand follows the arm half way
    cover = _hand(centre, tilt, motion.openness[t], hand)
    paint(cover, _hand_colour(cover, centre, tilt, motion.turned[t], hand), hand_mm)
    return rgb, depth_mm


def _hand(centre: Point, tilt: float, openness: float, hand: Hand) -> Mask:
    """Coverage of every pixel by palm and fingers."""
    canvas = _new_canvas()
    radius = hand.palm_radius * (0.9 + (1 - 0.9) * openness)  # a fist is smaller than a palm
    cv2.circle(canvas, _fixed(centre), _fixed_length(radius), 255, -1, cv2.LINE_AA, _SHIFT)
    for (degrees, length), stretched in zip(_FINGERS, hand.stretched, strict=True):
        angle = tilt + np.radians(-degrees if hand.mirrored else degrees)
        unfolded = 0.12 + (1 - 0.12) * openness * stretched
        reach = radius + hand.finger_length * length * unfolded - hand.finger_width / 2
        tip = centre + reach * np.array([np.sin(angle), -np.cos(angle)])
        _line(canvas, centre, tip, hand.finger_width)
    return _average_down(canvas)


def _hand_colour(cover: Mask, centre: Point, tilt: float, turned: float, hand: Hand) -> Rgb:
    """The plain palm and the striped back, a fraction `turned` of which is in view."""
    across, upright = _X - centre[0], _Y - centre[1]
    from_wrist = across * np.sin(tilt) - upright * np.cos(tilt)
    stripe = 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * from_wrist / hand.stripe_period))
    back = hand.stripe_colours[0] + stripe[..., None] * (hand.stripe_colours[1] - hand.stripe_colours[0])

    reach = hand.palm_radius + hand.finger_length
    position = (across * np.cos(hand.turn_direction) + upright * np.sin(hand.turn_direction)) / (2 * reach) + 0.5
    border = turned * (1 + 2 * _TURN_SOFTNESS) - _TURN_SOFTNESS
    in_view = np.clip((border - position) / _TURN_SOFTNESS + 0.5, 0, 1)[..., None]

    shade = 0.55 + (1 - 0.55) * cv2.GaussianBlur(cover, (0, 0), 1.2)  # darker at the border of the hand
    return shade[..., None] * (hand.colour + in_view * (back - hand.colour))


def _ellipse(centre: Point, radii: tuple[float, float], tilt_degrees: float) -> Mask:
    canvas = _new_canvas()
    cv2.ellipse(canvas, _fixed(centre), _fixed(radii), tilt_degrees, 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
    return _average_down(canvas)


def _line(canvas: UInt8[np.ndarray, "h_scaled w_scaled"], start: Point, end: Point, width: float) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), 255, round(width * _SCALE), cv2.LINE_AA, _SHIFT)


def _new_canvas() -> UInt8[np.ndarray, "h_scaled w_scaled"]:
    return np.zeros((HEIGHT * _SCALE, WIDTH * _SCALE), np.uint8)


def _average_down(canvas: UInt8[np.ndarray, "h_scaled w_scaled"]) -> Mask:
    return cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) / 255.0


def _fixed_length(pixels: float) -> int:
    return round(pixels * _SCALE * (1 << _SHIFT))


def _fixed(point: Point | tuple[float, float]) -> tuple[int, int]:
    return _fixed_length(point[0]), _fixed_length(point[1])
