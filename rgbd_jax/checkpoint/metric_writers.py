"""Metrics of a run: accumulated on the devices, written to JSONL and TensorBoard, and a progress bar."""

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rgbd_jax.atomic_write import atomic_write

JSONL_FILE = "metrics.jsonl"
TIMING_METRICS = ("clips_per_second", "input_wait_fraction")  # those that differ when the same steps are run again
ADVICE = "make room or lift the restriction, and run the same command again"

Batch = TypeVar("Batch")
log = logging.getLogger("rgbd_jax")


class NonFiniteLossError(ArithmeticError):
    """The loss of a step is not a finite number; nothing after the last checkpoint is kept."""


class MetricAccumulator:
    """Accumulates the metrics of steps, which stay on the devices until they are logged."""

    def __init__(self, metrics: Sequence[Mapping[str, float]] = ()):
        self._metrics: list[Mapping[str, jax.Array | float]] = list(metrics)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measures time from here on."""
        self._started = time.monotonic()
        self._input_wait, self._timed_steps = 0.0, 0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Returns the next batch; the time counts as waiting for input if the devices finished the last step first."""
        started = time.monotonic()
        batch = next(batches)
        latest = self._metrics[-1].values() if self._metrics else ()
        if all(value.is_ready() for value in latest if isinstance(value, jax.Array)):  # type: ignore[attr-defined]
            self._input_wait += time.monotonic() - started
        return batch

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of the next step."""
        self._metrics.append(metrics)
        self._timed_steps += 1

    def per_step(self, step: int) -> list[dict[str, float]]:
        """Returns the metrics of every step since the last call of `means`; `step` is the last one."""
        metrics = [{name: float(value) for name, value in row.items()} for row in jax.device_get(self._metrics)]
        for number, row in enumerate(metrics, start=step - len(metrics) + 1):
            if not math.isfinite(row["loss"]):
                raise NonFiniteLossError(
                    f"the loss of step {number} is {row['loss']}: lower config.schedule.learning_rate or "
                    "config.optimizer.gradient_clip; the last checkpoint is from before that step"
                )
        return metrics

    def means(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns means over these steps, clips per second and the fraction of time spent waiting for input; resets."""
        metrics = self.per_step(step)
        means = {name: math.fsum(row[name] for row in metrics) / len(metrics) for name in metrics[0]}
        seconds = time.monotonic() - self._started
        timing = (batch_size * self._timed_steps / seconds, self._input_wait / seconds)
        self._metrics = []
        self.restart_clock()
        return means | dict(zip(TIMING_METRICS, timing, strict=True))


class MetricWriter:
    """Writes metrics to `metrics.jsonl` and for TensorBoard in the first process; in the others it does nothing.

    What a killed run logged after the checkpoint is removed: steps after `first_step`, where this run starts or
    resumes, and evaluations of other steps than `evaluated_steps`.

    Raises:
        OSError: a file cannot be written; names it.
    """

    def __init__(self, workdir: Path, first_step: int, evaluated_steps: Collection[int] = ()):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / JSONL_FILE
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []

        def is_kept(step: int, kind: str, **metrics: float) -> bool:
            return step <= first_step and (kind != "validation" or step in evaluated_steps)

        whole = [line for line in lines if line.endswith("\n")]  # a kill may cut the last one short
        with atomic_write(path, ADVICE) as unfinished:
            unfinished.write_text("".join(line for line in whole if is_kept(**json.loads(line))))
        self._jsonl = path.open("a")
        threading.excepthook = _log_tensorboard_errors
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step; the kind is "train" or "validation". `metrics.jsonl` is on disk on return."""
        if not self._active:
            return
        try:
            self._jsonl.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
            self._jsonl.flush()
            os.fsync(self._jsonl.fileno())  # a checkpoint must not be ahead of it
        except OSError as error:
            raise OSError(f"{self._jsonl.name} cannot be written: {error.strerror}; {ADVICE}") from error
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Closes the files; errors have been raised or logged when they occurred."""
        for file in (self._jsonl, self._tensorboard) if self._active else ():
            with contextlib.suppress(OSError):
                file.close()


@contextlib.contextmanager
def progress_bar(total: int, done: int, unit: str) -> Iterator[tqdm]:
    """Shows a progress bar in a terminal, with log messages above it; elsewhere nothing."""
    disable = not sys.stderr.isatty() or jax.process_index() != 0
    with (
        logging_redirect_tqdm([log]),
        tqdm(total=total, initial=done, unit=unit, disable=disable, dynamic_ncols=True, leave=False) as bar,
    ):
        yield bar


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Returns metrics as a line of the log shows them."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _log_tensorboard_errors(failed: threading.ExceptHookArgs) -> None:
    """Logs in one line that TensorBoard's thread cannot write: the same metrics are in the JSONL file."""
    if type(failed.thread).__module__.startswith("tensorboardX"):
        log.warning("metrics cannot be written for TensorBoard: %s", failed.exc_value)
    else:
        threading.__excepthook__(failed)
