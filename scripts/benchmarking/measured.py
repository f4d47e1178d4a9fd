"""Measures an accelerator beside its compiler's estimates: steps at growing batch sizes, their stages, the loader."""

import contextlib
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2

import rgbd_jax
from benchmarking.sides import Side

RAW_SIZES = {"rgb": (320, 240), "depth": (512, 424)}  # width and height of the frames that the loader reads
_CLIPS, _FRAMES = 8, 80
_BENCHMARK = Path(__file__).parents[1] / "benchmark.py"
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")  # of JAX, of PyTorch

log = logging.getLogger("rgbd_jax")

Rows = dict[str, dict[str, Any]]


def measure_steps(
    make_sides: Callable[[contextlib.ExitStack, int], dict[str, Side]],
    measure: Callable[[dict[str, Side], int], Rows],
    deadline: float,
) -> Rows:
    """Measures sides for growing numbers of clips, until one does not fit or the next would end after the deadline."""
    rows: Rows = {}
    for clips in itertools.chain((1, 2, 4), (6 * 2**power for power in itertools.count())):
        started = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                found = measure(make_sides(stack, clips), clips)
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_MEMORY):
                raise
            log.info("a batch of %d does not fit", clips)
            break
        rows |= {f"{part}, batch of {clips}": row for part, row in found.items()}
        taken = time.monotonic() - started
        log.info("a batch of %d was measured in %.0f s", clips, taken)
        if time.monotonic() + 1.5 * taken > deadline:
            log.info("a larger batch would take too long")
            break
    return rows


def measure_loader(options: Sequence[str]) -> Rows:
    """Returns the rows of the part "loader" for RGB and depth, of rendered clips with frames as large as a camera's."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        raw, data = Path(folder, "raw"), Path(folder, "data")
        write_raw_clips(raw)
        build = ["-m", "rgbd_jax", "data", "build", "rgbd_folder", f"--raw_dir={raw}", f"--data_dir={data}"]
        _python(*build, "--depth_storage=fast")
        for modality in RAW_SIZES:
            fields = [f"--config.modality={modality}", f"--config.data.data_dir={data}"]
            fields.append("--config.data.dataset=rgbd_folder")
            found = json.loads(_python(str(_BENCHMARK), "loader", "--json", *options, *fields))["rows"]
            rows[f"loader, {modality}, one core"] = found["loader"]
    return rows


def write_raw_clips(folder: Path) -> None:
    """Writes clips of two classes as the builder of `rgbd_folder` reads them."""
    for number, (modality, size) in itertools.product(range(_CLIPS), RAW_SIZES.items()):
        motion = ("push", "swipe_left")[number % 2]
        split = "validation" if number < 2 else "train"
        clip = folder / modality / split / motion / f"clip_{number}"
        clip.mkdir(parents=True)
        frames = rgbd_jax.example(motion, number)[modality]
        for at in range(_FRAMES):
            frame = cv2.resize(frames[at % len(frames)], size)
            cv2.imwrite(str(clip / f"{at:06}.png" if modality == "depth" else clip / f"{at:06}.jpg"), frame)


def _python(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed")
    return finished.stdout
