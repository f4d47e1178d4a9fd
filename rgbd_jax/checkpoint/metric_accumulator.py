"""The figures of the steps since the last line of the log."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import jax

from rgbd_jax.data.loader import Batch

# Figures of the log that another run of the same steps would not have.
OF_THE_CLOCK = ("clips_per_second", "input_wait_fraction")


class NonFiniteLossError(ArithmeticError):
    """The loss of a step is not a finite number; nothing after the last checkpoint is kept."""


class MetricAccumulator:
    """Collects figures; they stay on the device until they are looked at.

    Args:
        figures: those of the steps before, of a run that goes on.
    """

    def __init__(self, figures: Sequence[Mapping[str, float]] = ()):
        self._figures: list[Mapping[str, jax.Array | float]] = list(figures)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measures time from here on."""
        self._started = time.monotonic()
        self._waited, self._timed = 0.0, 0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Takes the next batch; the time counts as waiting if the devices were done with the last step before it."""
        started = time.monotonic()
        batch = next(batches)
        latest = self._figures[-1].values() if self._figures else ()
        if all(figure.is_ready() for figure in latest if isinstance(figure, jax.Array)):  # type: ignore[attr-defined]
            self._waited += time.monotonic() - started
        return batch

    def add(self, figures: Mapping[str, jax.Array]) -> None:
        """Adds the figures of the next step."""
        self._figures.append(figures)
        self._timed += 1

    def figures(self, step: int) -> list[dict[str, float]]:
        """Returns the figures of every step since the last call of `means`, as a checkpoint keeps them.

        Args:
            step: the last step that was added.

        Raises:
            NonFiniteLossError: a step's loss is not finite.
        """
        figures = [{name: float(value) for name, value in of.items()} for of in jax.device_get(self._figures)]
        for number, of_step in enumerate(figures, start=step - len(figures) + 1):
            if not math.isfinite(of_step["loss"]):
                raise NonFiniteLossError(
                    f"the loss of step {number} is {of_step['loss']}: lower config.schedule.learning_rate or "
                    "config.optimizer.gradient_clip; the last checkpoint is from before that step"
                )
        return figures

    def means(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns the mean figures, clips a second and the share of waiting since the last call, and starts anew.

        Args:
            step: the last step that was added.
            batch_size: clips of a step.

        Raises:
            NonFiniteLossError: a step's loss is not finite.
        """
        figures = self.figures(step)
        means = {name: math.fsum(of_step[name] for of_step in figures) / len(figures) for name in figures[0]}
        seconds = time.monotonic() - self._started
        means["clips_per_second"] = batch_size * self._timed / seconds
        means["input_wait_fraction"] = self._waited / seconds
        self._figures = []
        self.restart_clock()
        return means
