"""Metrics of a run: accumulated on the devices, written to JSONL and by `config.train.writers`, and a progress bar."""

import contextlib
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint.writers import WRITERS
from rgbd_jax.metrics import to_json_able
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.probe import slowest_device_seconds
from rgbd_jax.regular_files import check_regular
from rgbd_jax.storage import is_remote, size

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
                    f"the loss of step {number} is {row['loss']}: the last checkpoint is from before that step; lower "
                    "config.schedule.learning_rate or config.optimizer.gradient_clip in another --workdir, from the "
                    "start or with --config.continue_from"
                )
        return metrics

    def means(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns means over these steps, clips per second and the fraction of time spent waiting for input; resets.

        That fraction is the largest over all processes, which wait for each other; the log names one that is slower.
        """
        metrics = self.per_step(step)
        means = {name: math.fsum(row[name] for row in metrics) / len(metrics) for name in metrics[0]}
        seconds = time.monotonic() - self._started
        processes, values = distributed.gather((self._input_wait / seconds, slowest_device_seconds()))
        waits, device = values.T
        _warn_of_slow(processes, waits, 2.0, 0.1, "waits for input {:.0%} of its time, the median {:.0%}")
        text = "needs {:.2g} ms for a test computation on its slowest device, the median {:.2g} ms"
        _warn_of_slow(processes, 1e3 * device, 1.5, 0.0, text)
        timing = (batch_size * self._timed_steps / seconds, float(waits.max()))
        self._metrics = []
        self.restart_clock()
        return means | dict(zip(TIMING_METRICS, timing, strict=True))


def _warn_of_slow(processes: Sequence[str], values: np.ndarray, factor: float, excess: float, text: str) -> None:
    """Names the process with the largest value, if that is more than `factor` times the median, and `excess`."""
    slowest, median = int(values.argmax()), statistics.median_low(values)
    if values[slowest] > factor * median + excess:
        log.warning("%s slows down the training: it %s", processes[slowest], text.format(values[slowest], median))


class MetricWriter:
    """Writes metrics to `metrics.jsonl` and to `config.train.writers` in the first process; in others it does nothing.

    What a killed run logged after the checkpoint is removed: steps after `first_step`, where this run starts or
    resumes, and evaluations of other steps than `evaluated_steps`.
    """

    def __init__(self, workdir: Path, config: ConfigDict, first_step: int, evaluated_steps: Collection[int] = ()):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path, rows = workdir / JSONL_FILE, read_metrics(workdir)
        kept = (
            row
            for row in rows
            if row["step"] <= first_step and (row["kind"] != "validation" or row["step"] in evaluated_steps)
        )
        text = "".join(json.dumps(to_json_able(row)) + "\n" for row in kept)
        with atomic_write(path, ADVICE) as unfinished:
            unfinished.write_text(text)
        self._path = path
        self._jsonl: IO[str] = tempfile.TemporaryFile("w+") if is_remote(path) else path.open("a")  # noqa: SIM115
        self._jsonl.write(text if is_remote(path) else "")
        self._writers = [WRITERS[name](workdir, config, first_step) for name in config.train.writers]

    def write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step; the kind is "train" or "validation". `metrics.jsonl` is on disk on return.

        In object storage it is there after an evaluation, and after `sync`.
        """
        if not self._active:
            return
        try:
            self._jsonl.write(json.dumps({"step": step, "kind": kind, **to_json_able(metrics)}) + "\n")
            self._jsonl.flush()
            os.fsync(self._jsonl.fileno())  # a checkpoint must not be ahead of it
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}; {ADVICE}") from error
        for writer in self._writers:
            writer.write(step, {f"{kind}/{name}": value for name, value in metrics.items()})
        if kind == "validation":
            self.sync()

    def sync(self) -> None:
        """Uploads `metrics.jsonl` to object storage, where nothing can be appended to it."""
        if self._active and is_remote(self._path):
            self._jsonl.seek(0)
            with atomic_write(self._path, ADVICE) as unfinished:
                unfinished.write_text(self._jsonl.read())

    def close(self) -> None:
        """Closes the files; errors have been raised or logged when they occurred."""
        if self._active:
            try:
                self.sync()
            except OSError as error:
                log.warning("%s", error)
            for close in (self._jsonl.close, *(writer.close for writer in self._writers)):
                with contextlib.suppress(OSError):
                    close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl`: step, kind and metrics. A last line that a kill cut short is left out."""
    path, rows = workdir / JSONL_FILE, []
    if not path.exists():
        return []
    check_regular(path)
    *lines, _ = path.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            valid = isinstance(rows[-1]["step"], int) and isinstance(rows[-1]["kind"], str)
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise ValueError(f"{path}:{number} is damaged: remove the line, or restore the file")
    return rows


def set_metrics_aside(workdir: Path) -> None:
    """Renames `metrics.jsonl`, if there is one, so that a run that begins anew keeps it."""
    path, number = workdir / JSONL_FILE, 1
    if path.exists() and size(path):
        while (target := path.with_name(f"{path.stem}.before_restart_{number}{path.suffix}")).exists():
            number += 1
        path.rename(target)
        log.warning("%s has no checkpoint and begins anew; its metrics so far are kept in %s", workdir, target.name)


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
