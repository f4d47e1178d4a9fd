"""Evaluation: every clip of a split counted once, in batches over all devices."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rgbd_jax import metrics
from rgbd_jax.checkpoint.checkpoints import find, read_metadata, read_state
from rgbd_jax.checkpoint.workdir import check_workdir
from rgbd_jax.config import check_config, check_divisible
from rgbd_jax.data import loader
from rgbd_jax.data.source import PreparedSplit, open_splits
from rgbd_jax.initial_state import matching_weights
from rgbd_jax.model import Model, evaluation_schedule
from rgbd_jax.models.family import ScheduleValues
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.mesh import shard, share_of_process
from rgbd_jax.pytorch.weights import is_converted, read_weights
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.step import Steps, TrainState, new_state

log = logging.getLogger("rgbd_jax")


class Evaluator:
    """Evaluates states of a model on the clips of one split."""

    def __init__(self, steps: Steps, split: PreparedSplit):
        self._steps, self._split = steps, split

    def __call__(
        self, state: TrainState, schedule: ScheduleValues, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], Scores] | None:
        """Returns the metrics over all clips, and the scores that they are computed from.

        The metrics are those of `metrics.measure`, with the numbers of `clips` and of `views` of each. Every process
        returns the same, with the clips in the order of the split. None if `stop`, called after every batch, is true.
        """
        model, results = self._steps.model, []
        config = model.config
        for batch in loader.eval_batches(self._split, config, **share_of_process(config.eval.batch_size)):
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
        measured = metrics.measure(model.family, scores.heads, scores.labels, losses)
        return {"clips": len(order), "views": config.eval.clips * config.eval.crops, **measured}, scores

    def _evaluate_views(self, state: TrainState, batch: loader.Batch, schedule: ScheduleValues) -> Mapping[str, Any]:
        """Returns logits and losses averaged over the views of each clip.

        Views are evaluated one after the other: memory does not depend on their number.
        """
        views = [self._steps.evaluate(state, view, schedule) for view in loader.views(batch)]
        if len(views) == 1:
            return views[0]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *views)  # v b ...
        heads = {name: metrics.average_views(logits) for name, logits in stacked["heads"].items()}
        losses = {name: values.mean(0) for name, values in stacked["losses"].items()}
        return {**views[0], "heads": heads, "losses": losses}


def evaluate(config: ConfigDict, workdir: Path, which: str) -> dict:
    """Evaluates the "best" or "latest" checkpoint of a workdir, or a converted one, on `config.data.eval_split`.

    The scores of all clips are written to the workdir (see `scores.scores_file`).

    Returns:
        The result: step (0 for a converted checkpoint), clips, metrics and seconds.
    """
    started = time.monotonic()
    check_config(config)
    if not is_converted(workdir):
        check_workdir(workdir, config, new_allowed=False)
    check_divisible(config, jax.device_count(), training=False)
    splits = open_splits(config)
    steps = Steps(Model(config, splits.num_classes))
    state, schedule = _restore(steps, workdir, which)
    result = Evaluator(steps, splits.evaluation)(state, schedule)
    assert result is not None
    measured, scores = result
    if distributed.is_primary():
        file = scores_file(workdir, scores.split)
        scores.save(file)
        log.info("scores of all clips: %s", file)
    return {"step": int(state.step), **measured, "seconds": round(time.monotonic() - started, 1)}


def _restore(steps: Steps, workdir: Path, which: str) -> tuple[TrainState, ScheduleValues]:
    """Returns the state of a checkpoint on all devices, and the schedule values of its epoch."""
    config = steps.model.config
    if is_converted(workdir):
        weights = read_weights(workdir)
        state = new_state(steps.model, *matching_weights(steps.model, weights))
        epoch = config.train.epochs if weights.epoch is None else weights.epoch
        return shard(state, steps.sharding), evaluation_schedule(config, max(epoch - 1, 0))
    folder = find(workdir, which)
    state = read_state(folder, steps.shapes, steps.sharding)
    return state, evaluation_schedule(config, read_metadata(folder).last_epoch)
