"""Training: build, restore, then step, log, evaluate and save until the last epoch is done."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rgbd_jax.checkpoint import Checkpoints, accuracy_by_epoch, best_epoch, check_workdir, write_config
from rgbd_jax.data import pipeline
from rgbd_jax.dataset import open_splits
from rgbd_jax.evaluate import Evaluator
from rgbd_jax.settings import check_config
from rgbd_jax.sharding import clip_mesh, global_batch, local_batch_size, replicated
from rgbd_jax.start import starting_point
from rgbd_jax.steps import Stream, evaluation_moment, moment_at
from rgbd_jax.writers import Progress, Writers

log = logging.getLogger("rgbd_jax")


class NonFiniteLossError(ArithmeticError):
    """The loss of a step is not a finite number; nothing after the last checkpoint is kept."""


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains until `config.train.epochs` are done, resuming where the workdir's latest checkpoint left off.

    Returns:
        The result: step, clips and metrics of the best checkpoint, and seconds.

    Raises:
        ValueError: the config cannot be used, the data do not fit it, or the workdir is of another config.
        FileNotFoundError: data are missing.
        NonFiniteLossError: the training diverged; names the step.
    """
    started = time.monotonic()

    # Check everything that can be wrong before anything is written.
    check_config(config)
    check_workdir(workdir, config, new_allowed=True)
    splits = open_splits(config)
    mesh = clip_mesh()
    batch_size = local_batch_size(config.train.batch_size, "config.train.batch_size")
    steps = pipeline.steps_per_epoch(splits.training, config.train.batch_size)
    last_step = steps * config.train.epochs
    stream = Stream(config, splits.num_classes)
    evaluate = Evaluator(stream, splits.evaluation, mesh)
    batches = pipeline.train_batches(
        splits.training,
        config,
        batch_size=batch_size,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )

    start = None if Checkpoints.exist(workdir) else starting_point(stream)

    # Go on from the latest checkpoint; without one start where the config says: amid another training, from its
    # weights, or from scratch.
    write_config(workdir, config)
    checkpoints = Checkpoints(workdir, config.checkpoint.best_metric)
    history = checkpoints.history()
    if start is None:
        step = history[-1]["step"]
        state, place = checkpoints.restore(step, stream.shapes(), replicated(mesh))
        batches.set_state(dict(place))
        log.info("resumed from step %d of %d in %s", step, last_step, workdir)
    else:
        step = start.epoch * steps
        state = jax.device_put(dataclasses.replace(start.state, step=jnp.asarray(step, jnp.int32)), replicated(mesh))
        pipeline.skip_batches(batches, step)
        log.info("training for %d steps on %d clips, %d devices", last_step, len(splits.training), jax.device_count())
    train_step = jax.jit(stream.train_step, donate_argnums=0, out_shardings=replicated(mesh))
    writers = Writers(workdir, step)

    # Step, log, evaluate, save.
    recent = Recent(step)
    progress = Progress(last_step, step, "step")
    with contextlib.closing(checkpoints), contextlib.closing(writers), progress:
        if start and start.epoch:  # so that its accuracy here can be compared with what it was there
            figures = evaluate(state, evaluation_moment(config, start.epoch - 1))
            history.append({"step": step, "epoch": start.epoch, **figures, **start.notes})
            writers.write(step, "validation", figures)
            log.info("epoch %d, as taken over  validation  %s", start.epoch, _line(figures))
            checkpoints.save(state, batches.get_state(), history)
        while step < last_step:
            moment = moment_at(config, step / steps, accuracy_by_epoch(history))
            batch = global_batch(recent.next_batch(batches), mesh)
            state, measured = train_step(state, batch, moment)
            step += 1
            recent.add(measured)
            progress.advance()
            epoch_done = step % steps == 0

            if epoch_done or step % config.train.log_every_steps == 0:
                figures = recent.means(step, config.train.batch_size)
                writers.write(step, "train", {"learning_rate": float(moment.learning_rate), **figures})
                log.info("step %d/%d  epoch %.2f  %s", step, last_step, step / steps, _line(figures))

            epoch = step // steps
            if epoch_done and (epoch % config.train.evaluate_every_epochs == 0 or step == last_step):
                figures = evaluate(state, moment)
                writers.write(step, "validation", figures)
                log.info("epoch %d/%d  validation  %s", epoch, config.train.epochs, _line(figures))
                history.append({"step": step, "epoch": epoch, **figures})
                checkpoints.save(state, batches.get_state(), history)
                recent.restart(step)

    return {
        **best_epoch(history, config.checkpoint.best_metric),
        "latest_top1": history[-1]["top1"],
        "seconds": round(time.monotonic() - started, 1),
    }


class Recent:
    """The figures of the steps since the last log line; they stay on the device until then."""

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        """Forgets everything; the clock runs from here."""
        self._figures: list[Mapping[str, jax.Array]] = []
        self._first_step = step
        self._started = time.monotonic()
        self._waited = 0.0

    def next_batch(self, batches: Iterator[pipeline.Batch]) -> pipeline.Batch:
        """Takes the next batch; the time counts as waiting if the devices were done with the last step before it."""
        started = time.monotonic()
        batch = next(batches)
        if all(array.is_ready() for figures in self._figures[-1:] for array in figures.values()):  # type: ignore[attr-defined]
            self._waited += time.monotonic() - started
        return batch

    def add(self, figures: Mapping[str, jax.Array]) -> None:
        """Adds the figures of the next step."""
        self._figures.append(figures)

    def means(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns the mean figures, clips a second and the share of waiting since the last call, and starts anew.

        Raises:
            NonFiniteLossError: a step's loss is not finite.
        """
        figures: Sequence[Mapping[str, float]] = jax.device_get(self._figures)
        for number, of_step in enumerate(figures, start=self._first_step + 1):
            if not math.isfinite(of_step["loss"]):
                raise NonFiniteLossError(
                    f"the loss of step {number} is {of_step['loss']}: lower config.schedule.learning_rate or "
                    "config.optimizer.gradient_clip; the last checkpoint is from before that step"
                )
        means = {name: float(sum(of_step[name] for of_step in figures)) / len(figures) for name in figures[0]}
        seconds = time.monotonic() - self._started
        means["clips_per_second"] = batch_size * len(figures) / seconds
        means["waiting_for_clips"] = self._waited / seconds
        self.restart(step)
        return means


def _line(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
