"""Where a run's figures go: TensorBoard, a JSONL file, and progress for the person who watches."""

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rgbd_jax.atomic_write import atomic_write

JSONL_FILE = "metrics.jsonl"
ADVICE = "make room or lift the restriction, and run the same command again"
TENSORBOARD_FAILED = "figures cannot be written for TensorBoard: %s"

log = logging.getLogger("rgbd_jax")


class Writers:
    """Writes figures of the first process; does nothing on the others.

    Args:
        workdir: the run's folder.
        first_step: the step that the run starts or resumes from; figures of later steps, left by a run that was
            killed, are removed.
        evaluated: steps that the run it goes on with has evaluated; figures of other evaluations are removed.

    Raises:
        OSError: the files cannot be written; names them (as all methods do but `close`).
    """

    def __init__(self, workdir: Path, first_step: int, evaluated: Collection[int] = ()):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / JSONL_FILE
        kept = [line for line in _lines(path) if _belongs(json.loads(line), first_step, evaluated)]
        with atomic_write(path, ADVICE) as unfinished:
            unfinished.write_text("".join(kept))
        with _named_errors(path):
            self._jsonl = path.open("a")
        threading.excepthook = _tell_of_tensorboard
        with _named_errors(workdir / "tensorboard"):
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, kind: str, figures: Mapping[str, float]) -> None:
        """Writes figures of one kind ("train", "validation") under a step."""
        if not self._active:
            return
        with _named_errors(self._jsonl.name):
            self._jsonl.write(json.dumps({"step": step, "kind": kind, **figures}) + "\n")
            self._jsonl.flush()
        for name, value in figures.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Puts the figures on disk, as a checkpoint does with all else."""
        if self._active:
            with _named_errors(self._jsonl.name):
                os.fsync(self._jsonl.fileno())

    def close(self) -> None:
        """Puts everything on disk; what cannot be written there has been told when it was."""
        if not self._active:
            return
        with contextlib.suppress(OSError):
            self._jsonl.close()
        try:
            self._tensorboard.close()
        except OSError as error:
            log.warning(TENSORBOARD_FAILED, error)


@contextlib.contextmanager
def _named_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}; {ADVICE}") from error


def _tell_of_tensorboard(failed: threading.ExceptHookArgs) -> None:
    """Tells in a line that TensorBoard's thread cannot write: the same figures are in the JSONL file."""
    if type(failed.thread).__module__.startswith("tensorboardX"):
        log.warning(TENSORBOARD_FAILED, failed.exc_value)
    else:
        threading.__excepthook__(failed)


def _belongs(line: Mapping[str, Any], first_step: int, evaluated: Collection[int]) -> bool:
    return line["step"] <= first_step and (line["kind"] != "validation" or line["step"] in evaluated)


def _lines(path: Path) -> list[str]:
    """Returns the whole lines of a file; a last one that a kill cut short is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Progress:
    """A bar on a terminal; elsewhere nothing, the log's plain lines are enough."""

    def __init__(self, total: int, done: int, unit: str):
        shown = sys.stderr.isatty() and jax.process_index() == 0
        self._bar = tqdm(total=total, initial=done, unit=unit, disable=not shown, dynamic_ncols=True, leave=False)
        self._redirect = logging_redirect_tqdm([log])

    def __enter__(self) -> "Progress":
        self._redirect.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        self._redirect.__exit__(*error)

    def advance(self) -> None:
        """Moves the bar on by one."""
        self._bar.update()


def line(figures: Mapping[str, float]) -> str:
    """Returns figures as the log shows them."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
