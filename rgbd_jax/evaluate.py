"""Evaluation: every clip of a split counted once, in batches over all devices."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rgbd_jax import metrics
from rgbd_jax.checkpoint.checkpoints import find, read_metadata, read_state
from rgbd_jax.checkpoint.workdir import check_workdir
from rgbd_jax.config_rules import check_config, check_divisible
from rgbd_jax.data import loader
from rgbd_jax.data.source import PreparedSplit
from rgbd_jax.data.splits import open_splits
from rgbd_jax.initial_state import matching_weights
from rgbd_jax.model import Model, evaluation_schedule
from rgbd_jax.models.family import ScheduleValues
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.mesh import global_batch, local_batch_size, make_mesh, replicated, shard, state_sharding
from rgbd_jax.pytorch.weights import is_converted, read_weights
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.step import Batch, TrainState, compile_evaluation_step, new_state, state_shapes

log = logging.getLogger("rgbd_jax")


class Evaluator:
    """Evaluates states of a model on the clips of one split."""

    def __init__(self, model: Model, split: PreparedSplit, mesh: Mesh):
        self._model, self._split, self._mesh = model, split, mesh
        self._step = compile_evaluation_step(model, mesh)
        self._program: Any = None

    def __call__(
        self, state: TrainState, schedule: ScheduleValues, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], Scores] | None:
        """Returns the metrics over all clips, and the scores that they are computed from.

        The metrics are those of `metrics.measure`, with the numbers of `clips` and of `views` of each. Every process
        returns the same, with the clips in the order of the split. None if `stop`, called after every batch, is true.
        """
        config, results = self._model.config, []
        batches = loader.eval_batches(
            self._split,
            config,
            batch_size=local_batch_size(config.eval.batch_size),
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        for batch in batches:
            results.append(self._evaluate_views(state, batch, schedule))
            if stop():
                return None
        result = jax.tree.map(lambda *parts: np.concatenate(parts), *results)
        valid = np.flatnonzero(result["mask"])
        order = valid[np.argsort(result["record"][valid])]
        assert np.array_equal(result["record"][order], np.arange(len(self._split))), "every clip is evaluated once"
        scores = Scores(
            names=self._split.names,
            labels=result["label"][order],
            heads={name: logits[order].astype(np.float32) for name, logits in result["heads"].items()},
            modality=config.modality,
            dataset=config.data.dataset,
            split=self._split.split,
            step=int(state.step),
            class_names=self._split.class_names,
        )
        losses = {name: values[order] for name, values in result["losses"].items()}
        measured = metrics.measure(self._model.family, scores.heads, scores.labels, losses)
        return {"clips": len(order), "views": config.eval.clips * config.eval.crops, **measured}, scores

    def _evaluate_views(self, state: TrainState, batch: loader.Batch, schedule: ScheduleValues) -> Mapping[str, Any]:
        """Returns logits and losses averaged over the views of each clip.

        Views are evaluated one after the other: memory does not depend on their number.
        """
        views = [self._evaluate(state, global_batch(view, self._mesh), schedule) for view in loader.views(batch)]
        if len(views) == 1:
            return views[0]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *views)  # v b ...
        heads = {name: metrics.average_views(logits) for name, logits in stacked["heads"].items()}
        losses = {name: values.mean(0) for name, values in stacked["losses"].items()}
        return {**views[0], "heads": heads, "losses": losses}

    def _evaluate(self, state: TrainState, batch: Batch, schedule: ScheduleValues) -> Mapping[str, Any]:
        arguments = state.params, state.batch_stats, batch, schedule
        self._program = self._program or distributed.compiled(self._step, "the evaluation", *arguments)
        # Batches must not overlap: on CPUs, a device that lags behind could mix up the collectives of two batches.
        return jax.device_get(jax.block_until_ready(self._program(*arguments)))


def evaluate(config: ConfigDict, workdir: Path, which: str) -> dict:
    """Evaluates the "best" or "latest" checkpoint of a workdir, or a converted one, on `config.data.eval_split`.

    The scores of all clips are written to the workdir (see `scores.scores_file`).

    Returns:
        The result: step (0 for a converted checkpoint), clips, metrics and seconds.

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        ValueError: the config is invalid, the workdir is of another config, or the data do not fit it.
    """
    started = time.monotonic()
    check_config(config)
    if not is_converted(workdir):
        check_workdir(workdir, config, new_allowed=False)
    mesh = make_mesh(config.sharding.parameter_shards)
    check_divisible(config, mesh.size, training=False)
    splits = open_splits(config)
    model = Model(config, splits.num_classes)
    state, schedule = _restore(model, workdir, which, mesh)
    result = Evaluator(model, splits.evaluation, mesh)(state, schedule)
    assert result is not None
    measured, scores = result
    if distributed.is_primary():
        file = scores_file(workdir, scores.split)
        scores.save(file)
        log.info("scores of all clips: %s", file)
    return {"step": int(state.step), **measured, "seconds": round(time.monotonic() - started, 1)}


def _restore(model: Model, workdir: Path, which: str, mesh: Mesh) -> tuple[TrainState, ScheduleValues]:
    """Returns the state of a checkpoint on all devices, and the schedule values of its epoch."""
    config = model.config
    if is_converted(workdir):
        weights = read_weights(workdir)
        state = new_state(model, *matching_weights(model, weights))
        epoch = config.train.epochs if weights.epoch is None else weights.epoch
        return shard(state, replicated(mesh)), evaluation_schedule(config, max(epoch - 1, 0))
    folder = find(workdir, which)
    shapes = state_shapes(model)
    state = read_state(folder, shapes, state_sharding(shapes, mesh))
    return state, evaluation_schedule(config, read_metadata(folder).last_epoch)
