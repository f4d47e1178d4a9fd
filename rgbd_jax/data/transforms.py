"""Rotation, resize, crop, flip and blur: drawn once a clip, done to each of its frames in one warp."""

import dataclasses
import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from ml_collections import ConfigDict

_NVGESTURE_CENTRE = 32  # left and top of the reference's evaluation crop for NvGesture, pixels
_NVGESTURE_MARGIN = 10  # smallest left and top of its training crops
CROPS = (1, 3, 5)  # numbers of crops that a clip can be evaluated with
_BLUR_PROBABILITY = 0.5
_BLUR_RADIUS = (0.1, 2.0)  # standard deviation, pixels of the cropped frame
# A frame that is scaled down is smoothed first, so that fine detail does not alias: by a Gaussian whose variance grows
# with 1 / scale^2 - 1, and below _SMALLEST_SCALE by averaging over areas until _REMAINING_SCALE is left. With these
# constants a linear warp comes as near to Pillow's antialiased bicubic resize as a cubic one, in half the time.
_SMOOTHING = 0.33
_SMALLEST_SCALE = 0.4
_REMAINING_SCALE = 0.8
_LEAST_SIGMA = 0.2  # pixels: less is not to be seen
_MARGIN = 5  # pixels around what is seen that the Gaussian and the interpolation read


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """What is done to every frame of one clip.

    Attributes:
      resize: Width and height that a frame is resized to before the crop, pixels.
      crop_size: Width and height of the crop, pixels.
      size: Width and height of the result, pixels.
      left: Left edge of the crop in the resized frame, pixels.
      top: Top edge of the crop in the resized frame, pixels.
      rotation: Rotation about the frame's centre before all else, degrees anticlockwise.
      flip: Whether the crop is mirrored left to right.
      blur_radius: Standard deviation of a Gaussian blur, pixels of the crop; None does not blur.
    """

    resize: tuple[int, int]
    crop_size: int
    size: int
    left: int
    top: int
    rotation: int = 0
    flip: bool = False
    blur_radius: float | None = None

    def __call__(
        self,
        frame: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"],
        out: UInt8[np.ndarray, "size size 3"],
        colour: Callable[[np.ndarray], UInt8[np.ndarray, "_ _ 3"]] = lambda part: part,
    ) -> None:
        """Transforms one frame.

        Args:
          frame: The frame, uint8[h w 3], or what `colour` makes one of.
          out: Where the result goes, uint8[size size 3], contiguous.
          colour: Done to the part of the frame that is to be seen, pixel by pixel.
        """
        rows, columns, matrix, scale = _plan(self, frame.shape[1], frame.shape[0])
        frame = colour(frame[rows, columns])
        if not _copy_moved(frame, matrix, out):
            smooth = _smooth(frame, scale)
            if smooth.shape != frame.shape:
                matrix = matrix @ np.diag([frame.shape[1] / smooth.shape[1], frame.shape[0] / smooth.shape[0], 1.0])
            _warp(
                smooth,
                (_PIXEL_TO_INDEX @ matrix @ _INDEX_TO_PIXEL)[:2],
                out,
                cv2.BORDER_CONSTANT if self.rotation else cv2.BORDER_REPLICATE,
            )
        if self.blur_radius is not None:
            sigma = self.blur_radius * self.size / self.crop_size
            cv2.GaussianBlur(out, (0, 0), sigma, dst=out, borderType=cv2.BORDER_REPLICATE)

    def matrix(self, width: int, height: int) -> np.ndarray:
        """Position in a width x height frame to position in the result, both in pixels from the upper left corner."""
        cosine, sine = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        x, y = width / 2, height / 2
        rotate = np.array(
            [
                [cosine, sine, x - cosine * x - sine * y],
                [-sine, cosine, y + sine * x - cosine * y],
                [0, 0, 1],
            ]
        )
        resize = np.diag([self.resize[0] / width, self.resize[1] / height, 1.0])
        crop = np.array([[1.0, 0, -self.left], [0, 1.0, -self.top], [0, 0, 1]])
        if self.flip:
            crop = np.array([[-1.0, 0, self.crop_size], [0, 1, 0], [0, 0, 1]]) @ crop
        scale = self.size / self.crop_size
        return np.diag([scale, scale, 1.0]) @ crop @ resize @ rotate


def check_settings(settings: ConfigDict) -> None:
    """Checks `config.data.transforms`.

    Args:
      settings: `config.data.transforms`.

    Raises:
      ValueError: A field has a value that cannot be used; the message names it.
    """
    prefix = "config.data.transforms"
    first = _NVGESTURE_CENTRE if settings.reference_nvgesture_crop else 0
    for side, length in zip(("width", "height"), settings.resize, strict=True):
        if settings.crop_size < 1 or length < settings.crop_size + first:
            start = f" from {first} on ({prefix}.reference_nvgesture_crop)" if first else ""
            raise ValueError(
                f"{prefix}.resize is {tuple(settings.resize)}: its {side} {length} does not hold "
                f"{prefix}.crop_size = {settings.crop_size} pixels{start}; enlarge resize or take a smaller crop_size"
            )
    for name in ("rotation_probability", "flip_probability"):
        if not 0 <= settings[name] <= 1:
            raise ValueError(f"{prefix}.{name} is {settings[name]}; a probability is between 0 and 1")
    lowest, highest = settings.rotation_degrees
    if settings.rotation_probability > 0 and lowest >= highest:
        raise ValueError(
            f"{prefix}.rotation_degrees is {tuple(settings.rotation_degrees)}; expected (lowest, highest), the highest "
            "being larger (it is not drawn itself)"
        )


def draw_transform(settings: ConfigDict, size: int, rng: np.random.Generator | None) -> ClipTransform:
    """Draws the transform of one clip.

    Training draws a whole angle in [lowest, highest) with `rotation_probability`; a crop, every position in the
    resized frame being as likely (the reference never draws the last one, and fails where there is only one); a flip
    with `flip_probability`; and, with `blur`, a Gaussian blur for half of the clips. Evaluation takes the centre crop.
    With `reference_nvgesture_crop` the evaluation crop starts at (32, 32) and training crops start at 10 or later, as
    in the reference's NvGesture loader, with which its accuracies were measured.

    Args:
      settings: `config.data.transforms`, checked by `check_settings`.
      size: Width and height of the result, pixels (`config.clip.size`).
      rng: Source of the draws (training); None gives the transform for evaluation.

    Returns:
      The transform.
    """
    room = [length - settings.crop_size for length in settings.resize]  # largest left and top
    transform = ClipTransform(
        resize=tuple(settings.resize), crop_size=settings.crop_size, size=size, left=room[0] // 2, top=room[1] // 2
    )
    if rng is None:
        if settings.reference_nvgesture_crop:
            return dataclasses.replace(transform, left=_NVGESTURE_CENTRE, top=_NVGESTURE_CENTRE)
        return transform
    rotated = rng.random() < settings.rotation_probability
    rotation = int(rng.integers(*settings.rotation_degrees)) if rotated else 0
    first = _NVGESTURE_MARGIN if settings.reference_nvgesture_crop else 0
    left, top = (int(rng.integers(first, last, endpoint=True)) for last in room)
    flip = bool(rng.random() < settings.flip_probability)
    blurred = settings.blur and rng.random() < _BLUR_PROBABILITY
    blur_radius = float(rng.uniform(*_BLUR_RADIUS)) if blurred else None
    return dataclasses.replace(transform, left=left, top=top, rotation=rotation, flip=flip, blur_radius=blur_radius)


def evaluation_transforms(settings: ConfigDict, size: int, crops: int) -> tuple[ClipTransform, ...]:
    """Returns the transforms of the crops that a clip is evaluated with.

    One crop is that of `draw_transform`. Three lie along the longer side of the resized frame (width, where both are
    equal) at its start, middle and end, in the middle of the other side. Five lie in the corners, row by row, and in
    the middle. With `reference_nvgesture_crop` several crops spread over the places of training crops, which start at
    10.

    Args:
      settings: `config.data.transforms`, checked by `check_settings`.
      size: Width and height of the result, pixels (`config.clip.size`).
      crops: Number of crops, one of `CROPS`.

    Returns:
      The transforms.

    Raises:
      ValueError: `crops` is not one of `CROPS`.
    """
    if crops not in CROPS:
        raise ValueError(f"config.eval.crops is {crops}; expected one of {', '.join(map(str, CROPS))}")
    transform = draw_transform(settings, size, None)
    if crops == 1:
        return (transform,)
    first = _NVGESTURE_MARGIN if settings.reference_nvgesture_crop else 0
    last_left, last_top = (length - settings.crop_size for length in settings.resize)
    left, top = (first + last_left) // 2, (first + last_top) // 2
    if crops == 5:
        places = [(x, y) for y in (first, last_top) for x in (first, last_left)] + [(left, top)]
    elif last_left >= last_top:
        places = [(x, top) for x in (first, left, last_left)]
    else:
        places = [(left, y) for y in (first, top, last_top)]
    return tuple(dataclasses.replace(transform, left=x, top=y) for x, y in places)


# OpenCV counts positions from the centre of the first pixel, and the matrices here from its upper left corner.
_INDEX_TO_PIXEL = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
_PIXEL_TO_INDEX = np.array([[1.0, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])


@functools.lru_cache(maxsize=64)  # the frames of a clip are of one size
def _plan(transform: ClipTransform, width: int, height: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """The rows and columns that are used of a frame, where they go to, and how much x and y are scaled."""
    matrix = transform.matrix(width, height)
    scale = np.hypot(matrix[0, :2], matrix[1, :2])
    if scale.min() < _SMALLEST_SCALE:  # areas are averaged, whose borders must not move
        return slice(0, height), slice(0, width), matrix, scale
    rows, columns = _needed(matrix, transform.size, width, height)
    return rows, columns, matrix @ np.array([[1.0, 0, columns.start], [0, 1.0, rows.start], [0, 0, 1]]), scale


def _needed(matrix: np.ndarray, size: int, width: int, height: int) -> tuple[slice, slice]:
    """The rows and columns of a frame that `matrix` moves to the result, with a margin."""
    corners = np.linalg.inv(matrix) @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])
    length = np.array([width, height])
    first = np.clip(np.floor(corners[:2].min(axis=1)).astype(int) - _MARGIN, 0, length - 1)
    last = np.clip(np.ceil(corners[:2].max(axis=1)).astype(int) + _MARGIN, first + 1, length)
    return slice(first[1], last[1]), slice(first[0], last[0])


def _copy_moved(frame: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> bool:
    """Copies the part of the frame that `matrix` moves to the result, if it only moves by whole pixels or mirrors."""
    size = len(out)
    mirrored = matrix[0, 0] == -1
    if not np.array_equal(matrix[:2, :2], [[-1 if mirrored else 1, 0], [0, 1]]):
        return False
    left = matrix[0, 2] - size if mirrored else -matrix[0, 2]
    top = -matrix[1, 2]
    if left != round(left) or top != round(top):
        return False
    window = frame[round(top) : round(top) + size, round(left) : round(left) + size]
    if mirrored:
        cv2.flip(window, 1, dst=out)  # ten times as fast as a copy of the mirrored view
    else:
        out[...] = window
    return True


def _warp(frame: UInt8[np.ndarray, "h w 3"], matrix: np.ndarray, out: np.ndarray, border: int) -> None:
    """Moves a frame by a matrix of indices, with a fourth channel: OpenCV needs a third of the time then."""
    frame = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA)
    warped = cv2.warpAffine(frame, matrix, out.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=border)
    cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out)


def _smooth(frame: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Takes out of a frame the detail that is lost when its axes are scaled by `scale` (x, y); may shrink it."""
    if scale.min() < _SMALLEST_SCALE:
        length = np.array([frame.shape[1], frame.shape[0]])
        shrunk = np.clip(np.rint(length * scale / _REMAINING_SCALE).astype(int), 1, length)
        frame = cv2.resize(frame, shrunk.tolist(), interpolation=cv2.INTER_AREA)
        scale = scale * length / shrunk
    sigma = _SMOOTHING * np.sqrt(np.maximum(1 / scale**2 - 1, 0))
    sizes = np.where(sigma < _LEAST_SIGMA, 1, np.where(sigma < 0.8, 3, 5))  # pixels; 1 leaves an axis as it is
    if (sizes == 1).all():
        return frame
    x, y = np.maximum(sigma, _LEAST_SIGMA)
    return cv2.GaussianBlur(frame, sizes.tolist(), sigmaX=x, sigmaY=y, borderType=cv2.BORDER_REPLICATE)
