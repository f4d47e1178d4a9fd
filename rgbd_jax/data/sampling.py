"""Which frames of a clip are seen: one of each of `count` equal intervals, as in the reference."""

import numpy as np
from jaxtyping import Int


def intervals(n: int, count: int) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
    """Cuts `n` frames into `count` intervals of as equal a length as whole frames allow, none of them empty.

    Interval i is [n * i // count, max(n * i // count + 1, n * (i + 1) // count)), the rule of the reference. Where
    there are fewer frames than intervals, neighbouring intervals hold the same frame.

    Args:
      n: Number of frames, at least 1.
      count: Number of intervals, at least 1.

    Returns:
      First frame of every interval, and the frame after its last, int64[count] each.

    Raises:
      ValueError: `n` or `count` is below 1.
    """
    if n < 1:
        raise ValueError(f"cannot sample frames: the clip has {n} frames, at least 1 is needed")
    if count < 1:
        raise ValueError(f"cannot sample {count} frames: config.clip.frames must be at least 1")
    edges = n * np.arange(count + 1) // count
    start = edges[:-1]
    return start, np.maximum(start + 1, edges[1:])


def sample_frames(frame_count: int, frames: int, rng: np.random.Generator | None) -> Int[np.ndarray, " frames"]:
    """Chooses one frame of each of `frames` intervals of a clip.

    Args:
      frame_count: Number of frames of the clip, at least 1.
      frames: Number of frames to choose, at least 1.
      rng: Source of a uniformly random member of each interval (training); None takes the middle member, the earlier
        one of two (evaluation).

    Returns:
      Frame numbers in time order, int64[frames], counted from 0. A clip shorter than `frames` repeats frames.

    Raises:
      ValueError: `frame_count` or `frames` is below 1.
    """
    start, stop = intervals(frame_count, frames)
    if rng is None:
        return (start + stop - 1) // 2
    return rng.integers(start, stop)


def view_frames(frame_count: int, frames: int, views: int) -> Int[np.ndarray, "views frames"]:
    """Chooses the frames of several views of a clip: densely, and the same number of frames for each.

    Every interval is cut into `views` equal parts, and view k takes the middle of its k-th part (of two middle members
    the earlier one). One view is what `sample_frames` takes in evaluation; the views of a clip of at least
    `views * frames` frames have no frame in common, those of a shorter one have.

    Args:
      frame_count: Number of frames of the clip, at least 1.
      frames: Number of frames of a view, at least 1.
      views: Number of views, at least 1.

    Returns:
      Frame numbers, int64[views frames], counted from 0, of each view in time order.

    Raises:
      ValueError: `frame_count` or `frames` is below 1.
    """
    start, stop = intervals(frame_count, frames)
    view = np.arange(views)[:, None]
    return start + ((2 * view + 1) * (stop - start) - 1) // (2 * views)
