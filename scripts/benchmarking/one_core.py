"""Parts of the input, on one core, beside the paper's recipe done frame by frame with Pillow, OpenCV and NumPy."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarking.in_turn import seconds_in_turn

WINDOW, FRAMES, SIZE = 10, 64, 224


def keep_to_one_core() -> None:
    """Has everything that is imported from now on run on one core."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def loader(repeats: int, warm_up: int) -> dict[str, dict[str, Any]]:
    """Training clips from encoded frames to the frames that the network sees; frame by frame with their heat maps."""
    from benchmarking import frame_by_frame
    from benchmarking.synthetic_clips import Clips
    from rgbd_jax.config import default_config
    from rgbd_jax.data import loader
    from rgbd_jax.data.loader import Batch

    rows = {}
    for name, stream, clips in (
        ("320x240 JPEG", "rgb", Clips.of_colour(320, 240)),
        ("512x424 depth, 16-bit PNG", "depth", Clips.of_depth(512, 424)),
    ):
        config = default_config(stream)
        config.data.workers = 1
        config.train.batch_size = 1
        batches = loader.train_batches(clips, config, batch_size=1)

        # Batches that were made ahead while the other side ran would come for free: a whole round of them is taken.
        def ours(batches: Iterator[Batch] = batches, clips: Clips = clips) -> None:
            for _ in range(len(clips)):
                next(batches)

        def other(frames: Sequence[bytes] = clips[0].frames[stream]) -> None:
            frame_by_frame.training_clip(frames, FRAMES, SIZE, WINDOW)

        seconds = seconds_in_turn({"ours": ours, "frame by frame": other}, repeats, warm_up)
        seconds["ours"] = [value / len(clips) for value in seconds["ours"]]
        rows[f"training clip, {name}"] = {"seconds": seconds}
    return rows


def heatmap(repeats: int, warm_up: int) -> dict[str, dict[str, Any]]:
    """Heat maps of one clip at the paper's size."""
    import jax
    import numpy as np

    from benchmarking import frame_by_frame
    from benchmarking.synthetic_clips import Clips
    from rgbd_jax.config import default_config
    from rgbd_jax.data import loader
    from rgbd_jax.models.heat_map import heat_maps

    config = default_config("rgb")
    config.data.workers = 1
    frames = next(loader.train_batches(Clips.of_colour(320, 240), config, batch_size=1))["frames"]["rgb"]  # 1 t h w 3
    compiled = jax.jit(heat_maps, static_argnums=1)
    normalised = (frames[0].astype(np.float32) - 127.5) / 128

    def ours() -> None:
        compiled(frames, WINDOW).block_until_ready()

    def other() -> None:
        frame_by_frame.heat_maps(normalised, WINDOW)

    seconds = seconds_in_turn({"ours": ours, "frame by frame": other}, repeats, warm_up)
    return {f"heat maps, {FRAMES} frames of {SIZE}x{SIZE}, w = {WINDOW}": {"seconds": seconds}}
