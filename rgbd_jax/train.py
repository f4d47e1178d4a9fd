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
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rgbd_jax.checkpoint.card_facts import Facts
from rgbd_jax.checkpoint.checkpoints import (
    CheckpointMetadata,
    Checkpoints,
    RetentionPolicy,
    accuracy_by_epoch,
    latest_intact,
    saved,
)
from rgbd_jax.checkpoint.metric_accumulator import MetricAccumulator
from rgbd_jax.checkpoint.metric_writers import Progress, Writers, line
from rgbd_jax.checkpoint.model_card import CARD_FILE, model_card, write_model_card
from rgbd_jax.checkpoint.preemption import PreemptedError, StopRequests
from rgbd_jax.checkpoint.provenance import check_provenance, continued_provenance, first_provenance, provenance
from rgbd_jax.checkpoint.workdir import check_workdir, write_config
from rgbd_jax.config import check_config, check_split_over
from rgbd_jax.data import loader
from rgbd_jax.data.splits import open_splits
from rgbd_jax.evaluate import Evaluator
from rgbd_jax.initial_state import InitialState, initial_state
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.mesh import global_batch, local_batch_size, make_mesh, place, state_sharding
from rgbd_jax.parallel.sharded_step import parallel_train_step, spread_over
from rgbd_jax.step import Stream, evaluation_schedule, schedule_at

log = logging.getLogger("rgbd_jax")


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains until `config.train.epochs` are done, resuming where the workdir's latest checkpoint left off.

    In a group of processes all of them call it; the first one writes figures and config.

    Returns:
        The result: step, clips and metrics of the best checkpoint, and seconds.

    Raises:
        ValueError: the config cannot be used, the data do not fit it, or the workdir is of another config.
        FileNotFoundError: data are missing.
        OSError: something cannot be written; the last checkpoint is intact.
        NonFiniteLossError: the training diverged; names the step.
        PreemptedError: the run was asked to stop, and has saved.
    """
    started = time.monotonic()

    # Check everything that can be wrong before anything is written.
    check_config(config)
    check_workdir(workdir, config, new_allowed=True)
    mesh = make_mesh(config.sharding.parameter_shards)
    check_split_over(config, mesh.size)
    splits = open_splits(config)
    produced_by = provenance(splits.training, splits.evaluation)
    steps = loader.steps_per_epoch(splits.training, config.train.batch_size)
    last_step = steps * config.train.epochs
    stream = Stream(config, splits.num_classes, spread_over(mesh))
    sharding = state_sharding(stream.shapes(), mesh)
    evaluate = Evaluator(stream, splits.evaluation, mesh)
    batches = loader.train_batches(
        splits.training,
        config,
        batch_size=local_batch_size(config.train.batch_size),
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    start = None if saved(workdir) else initial_state(stream)
    distributed.wait_for_all("everything is checked")

    # Go on from the latest checkpoint; without one start where the config says: amid another training, from its
    # weights, or from scratch.
    if distributed.is_primary():
        write_config(workdir, config, splits.training.class_names)
    distributed.wait_for_all("the workdir is there")
    if start is None:
        state, run = latest_intact(workdir, stream.shapes(), sharding)
        check_provenance(workdir, run.provenance, produced_by)
        step, history, recent = int(state.step), list(run.history), MetricAccumulator(run.recent)
        there, produced_by = run.provenance, continued_provenance(run, produced_by, step)
        batches.set_state(dict(run.data))
        log.info("resumed from step %d of %d in %s", step, last_step, workdir)
    else:
        step, history, recent = start.epoch * steps, [], MetricAccumulator()
        there = produced_by = first_provenance(produced_by, config.to_dict())
        state = place(dataclasses.replace(start.state, step=jnp.asarray(step, jnp.int32)), sharding)
        loader.skip_batches(batches, step)
        log.info("training for %d steps on %d clips, %s", last_step, len(splits.training), _machine(mesh))
    checkpoints = Checkpoints(workdir, RetentionPolicy(**config.checkpoint))
    writers = Writers(workdir, step, {epoch["step"] for epoch in history})
    train_step = parallel_train_step(stream, mesh)
    program = None

    def save(metrics: Mapping[str, Any] | None = None) -> None:
        writers.sync()
        last_epoch = max(step - 1, 0) // steps
        figures = recent.figures(step)
        run = CheckpointMetadata(batches.get_state(), history, figures, config.to_dict(), produced_by, last_epoch)
        checkpoints.save(state, run, metrics)

    def write_card(provenance: Mapping[str, Any]) -> None:
        if distributed.is_primary():
            parameters = sum(leaf.size for leaf in jax.tree.leaves(stream.shapes().params))
            classes = splits.training.class_names
            facts = Facts(splits.num_classes, parameters, config.to_dict(), history, provenance, classes)
            write_model_card(workdir, model_card(facts))

    # Evaluate and save where an epoch ends; step and log.
    progress, stop = Progress(last_step, step, "step"), StopRequests()
    with contextlib.closing(writers), contextlib.closing(checkpoints), progress, stop:
        while True:
            epoch = step // steps
            if _is_evaluated(config, step, steps, start) and step not in {known["step"] for known in history}:
                figures = evaluate(state, evaluation_schedule(config, epoch - 1), stop.received)
                if figures is None:
                    break
                writers.write(step, "validation", figures)
                log.info("epoch %d/%d  validation  %s", epoch, config.train.epochs, line(figures))
                history.append({"step": step, "epoch": epoch, **figures, **(start.notes if start else {})})
                recent.restart_clock()
                write_card(produced_by)  # before the checkpoint: a kill between them has both done again
                save(history[-1])
            if step == last_step or stop.received():
                break

            moment = schedule_at(config, step / steps, accuracy_by_epoch(history))
            batch = global_batch(recent.next_batch(batches), mesh)
            program = program or distributed.compiled(train_step, "the training step", state, batch, moment)
            state, measured = program(state, batch, moment)
            step += 1
            recent.add(measured)
            progress.advance()

            if step % steps == 0 or step % config.train.log_every_steps == 0:
                figures = recent.means(step, config.train.batch_size)
                writers.write(step, "train", {"learning_rate": float(moment.learning_rate), **figures})
                log.info("step %d/%d  epoch %.2f  %s", step, last_step, step / steps, line(figures))
                checkpoints.check()
            if checkpoints.is_due(step):
                save()
        finished = step == last_step and step in {known["step"] for known in history}
        if not finished:
            save()
    if not finished:
        raise PreemptedError(
            f"asked to stop, saved step {step} of {last_step} in {workdir}: the same command goes on from there"
        )
    if not (workdir / CARD_FILE).exists():  # a run of an older version, finished there
        write_card(there)
    best = RetentionPolicy(**config.checkpoint).best(history)
    return {**best, "latest_top1": history[-1]["top1"], "seconds": round(time.monotonic() - started, 1)}


def _is_evaluated(config: ConfigDict, step: int, steps: int, start: InitialState | None) -> bool:
    """Returns whether a step is one after which the network is evaluated."""
    epoch, place = divmod(step, steps)
    if place or not epoch:
        return False
    # A training that is taken over is evaluated first, so that its accuracy can be compared with what it was there.
    taken_over = start is not None and epoch == start.epoch
    return taken_over or epoch % config.train.evaluate_every_epochs == 0 or epoch == config.train.epochs


def _machine(mesh: Mesh) -> str:
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} devices{processes}"
