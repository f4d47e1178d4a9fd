"""Measures the parts of a training on this machine: `python scripts/benchmark.py loader` (or `heatmap`).

Each part is measured in turn with the paper's recipe done frame by frame with Pillow, OpenCV and NumPy, in the same
run, so that the ratio means something on a busy machine too. Everything runs on one core, on clips made on the spot.
The table goes to stdout, or all figures as one JSON object with `--json`. Needs the extra `test` (Pillow).
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WINDOW = 10
FRAMES = 64
SIZE = 224


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("loader", "heatmap"))
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is measured (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    _keep_to_one_core()  # before the libraries count the cores
    measure = {"loader": loader, "heatmap": heatmap}[arguments.part]
    rows = measure(arguments.repeats)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'':44s} {'ours, ms':>16s} {'frame by frame, ms':>20s} {'ratio':>7s}")
    for name, row in rows.items():
        print(f"{name:44s} {_spread(row['ours']):>16s} {_spread(row['frame_by_frame']):>20s} {row['ratio']:7.1f}")


def _keep_to_one_core() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _spread(seconds: Sequence[float]) -> str:
    ordered = sorted(1e3 * value for value in seconds)
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f}-{ordered[-1]:.1f})"


def in_turn(
    sides: Mapping[str, Callable[[], None]], repeats: int, units: Mapping[str, int]
) -> dict[str, list[float] | float]:
    """Runs both sides in turn and returns the seconds a unit of every run, and the ratio of the medians.

    Args:
        sides: "ours" and "frame_by_frame" -> what to run; each is run once before the clock starts.
        repeats: how often each side is measured.
        units: side -> clips that one run of it handles.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - started) / units[name])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**seconds, "ratio": medians["frame_by_frame"] / medians["ours"]}


def loader(repeats: int) -> dict[str, dict]:
    """Training clips from encoded frames to the frames that the network sees; frame by frame with their heat maps."""
    import frame_by_frame  # the cores are counted from here on
    from synthetic_clips import Clips

    from configs import common
    from rgbd_jax.data import pipeline

    rows = {}
    for name, stream, clips in (
        ("320x240 JPEG", "rgb", Clips.of_colour(320, 240)),
        ("512x424 depth, 16-bit PNG", "depth", Clips.of_depth(512, 424)),
    ):
        config = common.get_config(stream)
        config.data.workers = 1
        config.train.batch_size = 1
        batches = pipeline.train_batches(clips, config, batch_size=1)
        count = len(clips)
        rows[name] = in_turn(
            {
                "ours": lambda batches=batches, count=count: [next(batches) for _ in range(count)],
                "frame_by_frame": lambda clips=clips, stream=stream: frame_by_frame.training_clip(
                    clips[0].frames[stream], FRAMES, SIZE, WINDOW
                ),
            },
            repeats,
            {"ours": count, "frame_by_frame": 1},
        )
    return rows


def heatmap(repeats: int) -> dict[str, dict]:
    """Heat maps of one clip at the paper's size."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import frame_by_frame
    import jax
    import numpy as np
    from synthetic_clips import Clips

    from configs import common
    from rgbd_jax.data import pipeline
    from rgbd_jax.data.heatmap import heat_maps

    config = common.get_config("rgb")
    config.data.workers = 1
    frames = next(pipeline.train_batches(Clips.of_colour(320, 240), config, batch_size=1))["frames"]["rgb"]  # 1 t h w 3
    compiled = jax.jit(heat_maps, static_argnums=1)
    normalised = (frames[0].astype(np.float32) - 127.5) / 128
    return {
        f"{FRAMES} frames of {SIZE}x{SIZE}, w = {WINDOW}": in_turn(
            {
                "ours": lambda: compiled(frames, WINDOW).block_until_ready(),
                "frame_by_frame": lambda: frame_by_frame.heat_maps(normalised, WINDOW),
            },
            repeats,
            {"ours": 1, "frame_by_frame": 1},
        )
    }


if __name__ == "__main__":
    main()
