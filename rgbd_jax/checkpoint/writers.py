"""Where the metrics of a run can be watched: one class for each name of `config.train.writers`."""

import importlib
import importlib.util
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from ml_collections import ConfigDict

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.storage import is_remote, is_service_error

NOT_WRITTEN = "metrics cannot be written for TensorBoard: %s"

log = logging.getLogger("rgbd_jax")


class Writer(Protocol):
    """Writes scalars; made in the first process with the workdir, the config, and the step that is done already."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars by name, such as "validation/top1"; steps never decrease."""

    def close(self) -> None:
        """Writes what is still in memory."""


class TensorBoardWriter:
    """Writes to `WORKDIR/tensorboard`."""

    def __init__(self, workdir: Path, config: ConfigDict, first_step: int):
        from tensorboardX import SummaryWriter  # it imports PyTorch, where that is installed, which takes seconds

        threading.excepthook = _log_tensorboard_errors
        self._summary = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        for name, value in scalars.items():
            self._summary.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the file; object storage that cannot be reached is only logged."""
        try:
            self._summary.close()
        except Exception as error:
            if not is_service_error(error):
                raise
            log.warning(NOT_WRITTEN, error)


class WandbWriter:
    """Logs to the Weights & Biases project "rgbd_jax", or the one of WANDB_PROJECT.

    A resumed run continues the same one there, by the identifier in `WORKDIR/wandb/run_id.txt`.
    """

    def __init__(self, workdir: Path, config: ConfigDict, first_step: int):
        wandb = importlib.import_module("wandb")
        file = workdir / "wandb" / "run_id.txt"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            with atomic_write(file) as unfinished:
                unfinished.write_text(uuid.uuid4().hex)
        try:
            self._run = wandb.init(
                project=wandb.setup().settings.project or "rgbd_jax",
                name=workdir.resolve().name,
                id=file.read_text(),
                resume="allow",
                dir=None if is_remote(workdir) else str(workdir),
                config=config.to_dict(),
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:  # of the network, the login and the service
            advice = "run `wandb login`, set WANDB_MODE=offline, or leave it out of config.train.writers"
            raise OSError(f"Weights & Biases cannot start the run: {error}; {advice}") from error
        # Not W&B's own step, which never goes back: a resumed run may repeat steps that a killed one logged.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs scalars by name."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Waits until everything is sent, or offline on disk."""
        self._run.finish()


WRITERS: Mapping[str, Callable[[Path, ConfigDict, int], Writer]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
}


def check_installed(names: Iterable[str]) -> None:
    """Raises ValueError if the optional package of one of `config.train.writers` is not installed."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise ValueError("config.train.writers has 'wandb', but the package is not installed: pip install wandb")


def _log_tensorboard_errors(failed: threading.ExceptHookArgs) -> None:
    """Logs in one line that TensorBoard's thread cannot write: the same metrics are in the JSONL file."""
    if type(failed.thread).__module__.startswith("tensorboardX"):
        log.warning(NOT_WRITTEN, failed.exc_value)
    else:
        threading.__excepthook__(failed)
