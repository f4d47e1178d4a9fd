"""Training: build, restore, then step, log, evaluate and save until the last epoch is done."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rgbd_jax.checkpoint.checkpoints import (
    DAMAGED,
    CheckpointManager,
    CheckpointMetadata,
    accuracy_by_epoch,
    best_epoch,
    list_checkpoints,
    restore_latest,
)
from rgbd_jax.checkpoint.metric_writers import (
    MetricAccumulator,
    MetricWriter,
    format_metrics,
    progress_bar,
    read_metrics,
    set_metrics_aside,
)
from rgbd_jax.checkpoint.model_card import ModelCardData, write_model_card
from rgbd_jax.checkpoint.provenance import provenance, resumed_provenance
from rgbd_jax.checkpoint.workdir import check_workdir, locked, write_config
from rgbd_jax.checkpoint.writers import check_installed
from rgbd_jax.config import check_config, check_divisible
from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.evaluation import Evaluator
from rgbd_jax.initial_state import initial_state
from rgbd_jax.model import Model, evaluation_schedule, schedule_at
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.mesh import shard, share_of_process
from rgbd_jax.parallel.preemption import PreemptedError, PreemptionSync
from rgbd_jax.step import Steps

log = logging.getLogger("rgbd_jax")


def train(config: ConfigDict, workdir: Path, *, restart: bool = False) -> dict:
    """Trains until `config.train.epochs` are done, resuming from the workdir's latest checkpoint.

    With `restart` a run that has lost all checkpoints begins anew; its metrics are kept beside the new ones.

    In a group of processes all of them call it; the first one writes metrics and config.

    Returns:
        The result: step, clips and metrics of the best checkpoint, and seconds.

    Raises:
        ValueError: the config is invalid, the data do not fit it, or the workdir is of another config, in use, or
            without its checkpoints.
        FileNotFoundError: data are missing.
        OSError: something cannot be written; the last checkpoint is intact.
        NonFiniteLossError: the training diverged; names the step.
        PreemptedError: the run was preempted, and has saved.
    """
    with contextlib.ExitStack() as resources:
        return _train(config, workdir, restart, resources)


def _train(config: ConfigDict, workdir: Path, restart: bool, resources: contextlib.ExitStack) -> dict:
    started = time.monotonic()

    # Check everything that can be wrong before anything is written.
    check_config(config)
    check_divisible(config, jax.device_count())
    check_installed(config.train.writers)
    splits = open_splits(config)
    steps_per_epoch = loader.steps_per_epoch(splits.training, config.train.batch_size)
    last_step = steps_per_epoch * config.train.epochs
    batches = loader.train_batches(splits.training, config, **share_of_process(config.train.batch_size))
    check_workdir(workdir, config, new_allowed=True)
    origin = provenance(config, splits.training, splits.evaluation)
    model = Model(config, splits.num_classes)
    steps = Steps(model)
    evaluator = Evaluator(steps, splits.evaluation)
    initial = None
    if not list_checkpoints(workdir):
        if not restart:
            check_nothing_lost(workdir, config, steps_per_epoch)
        initial = initial_state(model)
    distributed.barrier("everything is checked")

    # Resume from the latest checkpoint; without one start from the initial state.
    if distributed.is_primary():
        resources.enter_context(locked(workdir))
        if bool(list_checkpoints(workdir)) != (initial is None):
            raise ValueError(f"{workdir}: another process has trained there meanwhile: run the command again")
        write_config(workdir, config, splits.training.class_names)
        if initial is not None:
            set_metrics_aside(workdir)
    distributed.barrier("the workdir exists")
    history: list[Mapping[str, Any]] = []
    notes: Mapping[str, Any] = {}
    if initial is None:
        state, metadata = restore_latest(workdir, steps.shapes, steps.sharding)
        step, history = int(state.step), list(metadata.history)
        origin = resumed_provenance(workdir, metadata.provenance, origin, step)
        accumulator = MetricAccumulator(metadata.accumulated)
        batches.set_state(dict(metadata.data_iterator))
        log.info("resumed from step %d of %d in %s", step, last_step, workdir)
    else:
        step, notes = initial.epoch * steps_per_epoch, initial.notes
        state = shard(dataclasses.replace(initial.state, step=jnp.asarray(step, jnp.int32)), steps.sharding)
        accumulator = MetricAccumulator()
        loader.skip_batches(batches, step)
        machine = f"{jax.device_count()} devices, {jax.process_count()} processes"
        log.info("training for %d steps on %d clips, %s", last_step, len(splits.training), machine)
    checkpoints = CheckpointManager(workdir, config.checkpoint)
    writer = MetricWriter(workdir, config, step, {epoch["step"] for epoch in history})

    def save(metrics: Mapping[str, Any] | None = None) -> None:
        last_epoch = max(step - 1, 0) // steps_per_epoch
        accumulated = accumulator.per_step(step)
        metadata = CheckpointMetadata(batches.get_state(), history, accumulated, config.to_dict(), origin, last_epoch)
        writer.sync()  # a checkpoint must not be ahead of the metrics
        checkpoints.save(state, metadata, metrics)

    def is_evaluated() -> bool:
        """Returns whether the current step ends an epoch after which the network is evaluated, and has not been yet."""
        epoch, remainder = divmod(step, steps_per_epoch)
        if remainder or not epoch or step in {past["step"] for past in history}:
            return False
        # A continued training is evaluated first, so that its accuracy can be compared with the one it had.
        continued = initial is not None and epoch == initial.epoch
        return continued or epoch % config.train.evaluate_every_epochs == 0 or epoch == config.train.epochs

    # Evaluate and save at the end of an epoch; step and log.
    preemption = PreemptionSync()
    with (
        contextlib.closing(writer),
        contextlib.closing(checkpoints),
        progress_bar(last_step, step, "step") as bar,
        preemption,
    ):
        while True:
            epoch = step // steps_per_epoch
            if is_evaluated():
                evaluated = evaluator(state, evaluation_schedule(config, epoch - 1), preemption.reached)
                if evaluated is None:
                    break
                metrics, _ = evaluated
                writer.write(step, "validation", metrics)
                log.info("epoch %d/%d  validation  %s", epoch, config.train.epochs, format_metrics(metrics))
                history.append({"step": step, "epoch": epoch, **metrics, **notes})
                accumulator.restart_clock()
                if distributed.is_primary():  # before the checkpoint: a kill in between repeats both
                    network = splits.training.class_names, splits.num_classes, model.num_parameters
                    write_model_card(workdir, ModelCardData(config.to_dict(), history, origin, *network))
                save(history[-1])
            if step == last_step or preemption.reached():
                break

            schedule = schedule_at(config, step / steps_per_epoch, accuracy_by_epoch(history))
            state, measured = steps.train(state, accumulator.next_batch(batches), schedule)
            step += 1
            accumulator.add(measured)
            bar.update()

            if step % steps_per_epoch == 0 or step % config.train.log_every_steps == 0:
                metrics = accumulator.means(step, config.train.batch_size)
                writer.write(step, "train", {"learning_rate": float(schedule.learning_rate), **metrics})
                log.info("step %d/%d  epoch %.2f  %s", step, last_step, step / steps_per_epoch, format_metrics(metrics))
                checkpoints.check_for_errors()
            if config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0:
                save()
        finished = step == last_step and bool(history) and history[-1]["step"] == step
        if not finished:
            save()
    if not finished:
        raise PreemptedError(
            f"preempted; saved step {step} of {last_step} in {workdir}: run the same command again to resume"
        )
    best = best_epoch(history, config.checkpoint)
    return {**best, "latest_top1": history[-1]["top1"], "seconds": round(time.monotonic() - started, 1)}


def check_nothing_lost(workdir: Path, config: ConfigDict, steps_per_epoch: int) -> None:
    """Raises ValueError if a workdir without checkpoints has had some.

    Its metrics go beyond the second save, which waits for the first, or some are damaged.
    """
    saves = [steps_per_epoch * config.train.evaluate_every_epochs, *filter(None, [config.checkpoint.every_steps])]
    step, damaged = max((row["step"] for row in read_metrics(workdir)), default=0), (workdir / DAMAGED).exists()
    if step > 2 * min(saves) or damaged:
        found = f"metrics up to step {step}" if step else "damaged checkpoints"
        raise ValueError(
            f"{workdir} has {found}, but no checkpoint: put its checkpoints back (is a disk not mounted?), give "
            "another --workdir, or begin anew with --restart"
        )
