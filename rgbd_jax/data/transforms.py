"""Rotation, resize, crop, flip and blur: drawn once per clip, applied to each of its frames in one warp."""

import dataclasses
import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from rgbd_jax.config_rules import NVGESTURE_CENTRE
from rgbd_jax.data.frames import Coloured, Depth
from rgbd_jax.data.scratch import Scratch

_NVGESTURE_MARGIN = 10  # smallest left and top of its training crops
_BLUR_PROBABILITY = 0.5
_BLUR_RADIUS = (0.1, 2.0)  # standard deviation, pixels of the cropped frame
# A frame that is scaled down is smoothed first, so that fine detail does not alias: by a Gaussian whose variance grows
# with 1 / scale^2 - 1, and below _SMALLEST_SCALE by averaging over areas until _REMAINING_SCALE is left. With these
# constants a linear warp comes as near to Pillow's antialiased bicubic resize as a cubic one, in half the time.
_SMOOTHING = 0.33
_SMALLEST_SCALE = 0.4
_REMAINING_SCALE = 0.8
_LEAST_SIGMA = 0.2  # pixels: a weaker Gaussian is invisible
_MARGIN = 5  # pixels around the visible part that the Gaussian and the interpolation read
# OpenCV counts positions from the centre of the first pixel, and the matrices here from its upper left corner.
_INDEX_TO_PIXEL = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
_PIXEL_TO_INDEX = np.array([[1.0, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """The transform of all frames of one clip: rotation, resize, crop, flip, blur, scaling. Lengths are in pixels."""

    resize: tuple[int, int]  # width, height of the frame before the crop
    crop_size: int
    size: int  # of the result
    left: int  # edges of the crop in the resized frame
    top: int
    rotation: int = 0  # degrees anticlockwise, about the frame's centre
    flip: bool = False  # left to right
    blur_radius: float | None = None  # standard deviation of a Gaussian, pixels of the crop

    def __call__(
        self,
        frame: Depth | Coloured,
        out: UInt8[np.ndarray, "size size 3"],
        colour: Callable[[np.ndarray], Coloured] = lambda part: part,
        scratch: Scratch | None = None,
    ) -> None:
        """Transforms one frame into `out`, which must be contiguous.

        `colour` maps the visible part of the frame to colours, pixel by pixel, before it is warped; `scratch` holds
        what lies between the steps.
        """
        scratch = scratch or Scratch()
        height, width = frame.shape[:2]
        if (self.rotation, self.resize, self.crop_size) == (0, (width, height), self.size):  # nothing is interpolated
            window = colour(frame[self.top : self.top + self.size, self.left : self.left + self.size])
            if window.shape[2] == 4:
                dropped = scratch.array("window", out.shape) if self.flip else out
                window = cv2.cvtColor(window, cv2.COLOR_RGBA2RGB, dst=dropped)
            if self.flip:
                cv2.flip(window, 1, dst=out)  # ten times as fast as a copy of the mirrored view
            elif window is not out:
                out[...] = window
        else:
            plan = _plan(self, width, height)
            smooth = plan.smoothed(colour(frame[plan.rows, plan.columns]), scratch)
            if smooth.shape[2] == 3:  # four channels are warped in a third of the time
                with_alpha = scratch.array("with alpha", (*smooth.shape[:2], 4))
                smooth = cv2.cvtColor(smooth, cv2.COLOR_RGB2RGBA, dst=with_alpha)
            border = cv2.BORDER_CONSTANT if self.rotation else cv2.BORDER_REPLICATE
            warped = scratch.array("warped", (self.size, self.size, 4))
            shape = self.size, self.size
            cv2.warpAffine(smooth, plan.matrix, shape, dst=warped, flags=cv2.INTER_LINEAR, borderMode=border)
            cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out)
        if self.blur_radius is not None:
            sigma = self.blur_radius * self.size / self.crop_size
            cv2.GaussianBlur(out, (0, 0), sigma, dst=out, borderType=cv2.BORDER_REPLICATE)

    def matrix(self, width: int, height: int) -> np.ndarray:
        """Maps positions in a width x height frame to the result, both in pixels from the upper left corner."""
        rotate = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), self.rotation, 1.0), [0, 0, 1]])
        resize = np.diag([self.resize[0] / width, self.resize[1] / height, 1.0])
        crop = np.array([[1.0, 0, -self.left], [0, 1.0, -self.top], [0, 0, 1]])
        if self.flip:
            crop = np.array([[-1.0, 0, self.crop_size], [0, 1, 0], [0, 0, 1]]) @ crop
        scale = self.size / self.crop_size
        return np.diag([scale, scale, 1.0]) @ crop @ resize @ rotate


def draw_transform(config: ConfigDict, rng: np.random.Generator | None) -> ClipTransform:
    """Draws the transform of one clip by `config.data.transforms`.

    Training (with `rng`) draws a whole angle in [lowest, highest), a crop anywhere in the resized frame (the reference
    never draws the last position, and fails where there is only one), a flip, and with `blur` a Gaussian blur for half
    of the clips. Evaluation takes the centre crop. With `reference_nvgesture_crop` the evaluation crop starts at
    (32, 32) and training crops at 10 or later, as in the reference's NvGesture loader, whose accuracies depend on it.
    """
    settings = config.data.transforms
    nvgesture = settings.reference_nvgesture_crop
    room = [length - settings.crop_size for length in settings.resize]  # largest left and top
    left, top = (NVGESTURE_CENTRE, NVGESTURE_CENTRE) if nvgesture else (room[0] // 2, room[1] // 2)
    transform = ClipTransform(tuple(settings.resize), settings.crop_size, config.clip.size, left, top)
    if rng is None:
        return transform
    rotated = rng.random() < settings.rotation_probability
    rotation = int(rng.integers(*settings.rotation_degrees)) if rotated else 0
    first = _NVGESTURE_MARGIN if nvgesture else 0
    left, top = (int(rng.integers(first, last, endpoint=True)) for last in room)
    flip = bool(rng.random() < settings.flip_probability)
    blurred = settings.blur and rng.random() < _BLUR_PROBABILITY
    blur_radius = float(rng.uniform(*_BLUR_RADIUS)) if blurred else None
    return dataclasses.replace(transform, left=left, top=top, rotation=rotation, flip=flip, blur_radius=blur_radius)


def evaluation_transforms(config: ConfigDict) -> tuple[ClipTransform, ...]:
    """Returns the transforms of the `config.eval.crops` spatial views of a clip.

    One crop is that of `draw_transform`. Three lie along the longer side of the resized frame (width, where both are
    equal) at its start, middle and end, centred on the other side. Five lie in the corners, row by row, and in the
    middle. With `reference_nvgesture_crop` several crops stay in the range of the training crops, which start at 10.
    """
    settings, crops = config.data.transforms, config.eval.crops
    transform = draw_transform(config, None)
    if crops == 1:
        return (transform,)
    first = _NVGESTURE_MARGIN if settings.reference_nvgesture_crop else 0
    last_left, last_top = (length - settings.crop_size for length in settings.resize)
    left, top = (first + last_left) // 2, (first + last_top) // 2
    if crops == 5:
        corners = [(x, y) for y in (first, last_top) for x in (first, last_left)] + [(left, top)]
    elif last_left >= last_top:
        corners = [(x, top) for x in (first, left, last_left)]
    else:
        corners = [(left, y) for y in (first, top, last_top)]
    return tuple(dataclasses.replace(transform, left=x, top=y) for x, y in corners)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a transform does to every frame of one size: select, shrink, smooth, warp."""

    rows: slice  # that are visible
    columns: slice
    shrunk: tuple[int, int] | None  # width, height
    kernel: tuple[int, int]  # of the Gaussian, pixels in x and y; 1 leaves an axis as it is
    sigma: tuple[float, float]
    matrix: np.ndarray  # 2 3, from indices in the smoothed part to indices in the result

    def smoothed(self, part: Coloured, scratch: Scratch) -> Coloured:
        """Removes the detail of the visible part that would alias when it is warped; may shrink it."""
        channels = part.shape[2]
        if self.shrunk:
            shrunk = scratch.array("shrunk", (*self.shrunk[::-1], channels))
            part = cv2.resize(part, self.shrunk, dst=shrunk, interpolation=cv2.INTER_AREA)
        if self.kernel == (1, 1):
            return part
        smooth, (x, y) = scratch.array("smooth", part.shape), self.sigma
        return cv2.GaussianBlur(part, self.kernel, sigmaX=x, sigmaY=y, dst=smooth, borderType=cv2.BORDER_REPLICATE)


@functools.lru_cache(maxsize=64)  # the frames of a clip are of one size
def _plan(transform: ClipTransform, width: int, height: int) -> _Plan:
    matrix = transform.matrix(width, height)
    scale = np.hypot(matrix[0, :2], matrix[1, :2])  # in x and y
    length = np.array([width, height])
    first, last, shrunk = np.zeros(2, int), length, None
    if scale.min() < _SMALLEST_SCALE:  # areas are averaged, whose borders must not move: the whole frame
        shrunk = np.clip(np.rint(length * scale / _REMAINING_SCALE).astype(int), 1, length)
        matrix = matrix @ np.diag([*(length / shrunk), 1.0])
        scale = scale * length / shrunk
    else:
        size = transform.size
        corners = np.linalg.inv(matrix) @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])
        first = np.clip(np.floor(corners[:2].min(axis=1)).astype(int) - _MARGIN, 0, length - 1)
        last = np.clip(np.ceil(corners[:2].max(axis=1)).astype(int) + _MARGIN, first + 1, length)
        matrix = matrix @ np.array([[1.0, 0, first[0]], [0, 1.0, first[1]], [0, 0, 1]])
    sigma = _SMOOTHING * np.sqrt(np.maximum(1 / scale**2 - 1, 0))
    kernel = np.where(sigma < _LEAST_SIGMA, 1, np.where(sigma < 0.8, 3, 5))
    columns, rows = (slice(*edges) for edges in zip(first.tolist(), last.tolist(), strict=True))
    matrix = (_PIXEL_TO_INDEX @ matrix @ _INDEX_TO_PIXEL)[:2]
    sigma = np.maximum(sigma, _LEAST_SIGMA)
    size_after = None if shrunk is None else tuple(shrunk.tolist())
    return _Plan(rows, columns, size_after, tuple(kernel.tolist()), tuple(sigma.tolist()), matrix)
