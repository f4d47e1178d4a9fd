"""Which frames of a clip are sampled: one of each of `count` equal intervals, as in the reference."""

import numpy as np
from jaxtyping import Int


def intervals(n: int, count: int) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
    """Cuts `n` frames into `count` intervals as equal in length as whole frames allow, none of them empty.

    Interval i is [n * i // count, max(n * i // count + 1, n * (i + 1) // count)), the rule of the reference: the first
    frame of every interval and the frame after its last are returned. With fewer frames than intervals, neighbouring
    intervals hold the same frame.

    Raises:
        ValueError: there is no frame.
    """
    if n < 1:
        raise ValueError(f"cannot sample frames: the clip has {n} frames, at least 1 is needed")
    edges = n * np.arange(count + 1) // count
    start = edges[:-1]
    return start, np.maximum(start + 1, edges[1:])


def sample_frames(frame_count: int, frames: int, rng: np.random.Generator | None) -> Int[np.ndarray, " frames"]:
    """Samples one frame of each of `frames` intervals of a clip, in time order.

    Training (with `rng`) takes a uniformly random member of each interval, evaluation the middle one (of two the
    earlier). A clip shorter than `frames` repeats frames.
    """
    start, stop = intervals(frame_count, frames)
    return (start + stop - 1) // 2 if rng is None else rng.integers(start, stop)


def view_frames(frame_count: int, frames: int, views: int) -> Int[np.ndarray, "views frames"]:
    """Samples the frames of several temporal views of a clip, each view in time order.

    Every interval is cut into `views` equal parts, and view k takes the middle of its k-th part (of two middle members
    the earlier one). One view equals `sample_frames` in evaluation; views share no frame of a clip that has at least
    `views * frames` of them.
    """
    start, stop = intervals(frame_count, frames)
    view = np.arange(views)[:, None]
    return start + ((2 * view + 1) * (stop - start) - 1) // (2 * views)
