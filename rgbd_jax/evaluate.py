"""Evaluation: every clip of a split counted once, in batches over all devices."""

import logging
import operator
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rgbd_jax import metrics
from rgbd_jax.checkpoint.checkpoints import RetentionPolicy, find, read_run, read_state
from rgbd_jax.checkpoint.workdir import check_workdir
from rgbd_jax.config import check_config, check_split_over
from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord, PreparedSplit
from rgbd_jax.dataset import open_splits
from rgbd_jax.initial_state import weights_for
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.mesh import global_batch, local_batch_size, make_mesh, place, replicated, state_sharding
from rgbd_jax.parallel.sharded_step import parallel_evaluation_step
from rgbd_jax.pytorch.converted import is_converted
from rgbd_jax.pytorch.files import read_weights
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.step import Batch, ScheduleValues, Stream, TrainState, evaluation_schedule

log = logging.getLogger("rgbd_jax")


class Evaluator:
    """Measures a network on the clips of one split."""

    def __init__(self, stream: Stream, source: PreparedSplit, mesh: Mesh):
        self._config = stream.config
        self._source = source
        self._mesh = mesh
        self._batch_size = local_batch_size(self._config.eval.batch_size)
        self._step = parallel_evaluation_step(stream, mesh)
        self._program: Any = None

    def __call__(
        self, state: TrainState, moment: ScheduleValues, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns the metrics over all clips (see `metrics.measure`), their number `clips`, and the `views` of each.

        None if `stop`, which is asked after every batch, said that it is not to go on.
        """
        scored = self._score(state, moment, stop)
        return None if scored is None else self._measured(scored, state)[0]

    def measure(self, state: TrainState, moment: ScheduleValues) -> tuple[dict[str, float], Scores]:
        """Returns the metrics over all clips, as a call does, and the scores that they are computed from.

        Every process returns the same, with the clips in the order of the split.
        """
        scored = self._score(state, moment, lambda: False)
        assert scored is not None
        return self._measured(scored, state)

    def _score(self, state: TrainState, moment: ScheduleValues, stop: Callable[[], bool]) -> Mapping[str, Any] | None:
        self._clips = _NamedClips(self._source)
        batches = loader.eval_batches(
            self._clips,
            self._config,
            batch_size=self._batch_size,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        found = []
        for batch in batches:
            found.append(self._scores(state, batch, moment))
            if stop():
                return None
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def _measured(self, scored: Mapping[str, Any], state: TrainState) -> tuple[dict[str, float], Scores]:
        source = self._clips
        real = np.flatnonzero(scored["mask"])
        order = real[np.argsort(scored["record"][real])]
        assert np.array_equal(scored["record"][order], np.arange(len(source))), "every clip is evaluated once"
        scores = Scores(
            names=source.names(),
            labels=scored["label"][order],
            heads={name: logits[order].astype(np.float32) for name, logits in scored["heads"].items()},
            modality=self._config.modality,
            dataset=self._config.data.dataset,
            split=self._source.split,
            step=int(state.step),
            class_names=self._source.class_names,
        )
        losses = {name: values[order] for name, values in scored["losses"].items()}
        views = self._config.eval.clips * self._config.eval.crops
        return {"clips": len(order), "views": views, **metrics.measure(scores.heads, scores.labels, losses)}, scores

    def _scores(self, state: TrainState, batch: loader.Batch, moment: ScheduleValues) -> Mapping[str, Any]:
        """Returns heads and losses of a batch, averaged over the views of each clip, and which clips these are.

        Views go through the network one after the other: its memory does not depend on their number.
        """
        views = [self._scored_view(state, global_batch(view, self._mesh), moment) for view in loader.views(batch)]
        if len(views) == 1:
            return views[0]
        heads = {
            name: metrics.average_views(np.stack([view["heads"][name] for view in views])) for name in views[0]["heads"]
        }
        losses = {name: np.mean([view["losses"][name] for view in views], axis=0) for name in views[0]["losses"]}
        return {**views[0], "heads": heads, "losses": losses}

    def _scored_view(self, state: TrainState, view: Batch, moment: ScheduleValues) -> Mapping[str, Any]:
        arguments = state.params, state.batch_stats, view, moment
        self._program = self._program or distributed.compiled(self._step, "the evaluation", *arguments)
        # One batch does not wait for another: a device that is behind the first one of its process, from which the
        # result is read, would send of two batches at once, and on CPUs the messages would be taken for each other.
        return jax.device_get(jax.block_until_ready(self._program(*arguments)))


class _NamedClips:
    """Clips that keep their names when they are read: reading them again for the names alone would take minutes."""

    def __init__(self, source: PreparedSplit):
        self._source = source
        self._names = [""] * len(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        clip = self._source[index]
        self._names[operator.index(index)] = clip.name
        return clip

    def names(self) -> tuple[str, ...]:
        """Returns the names of all clips, once every clip was read by one of the processes; all have to call it."""
        if jax.process_count() == 1:
            return tuple(self._names)
        # Only arrays travel between processes: a row of UTF-8 bytes for each clip, zeros for the clips of others.
        encoded = [name.encode() for name in self._names]
        longest = int(np.max(multihost_utils.process_allgather(np.array(max(map(len, encoded))))))
        rows = np.zeros((len(encoded), longest), np.uint8)
        for row, name in zip(rows, encoded, strict=True):
            row[: len(name)] = np.frombuffer(name, np.uint8)
        merged = np.max(multihost_utils.process_allgather(rows), axis=0)
        return tuple(row.tobytes().rstrip(b"\0").decode() for row in merged)


def evaluate(config: ConfigDict, workdir: Path, which: str) -> dict:
    """Evaluates the "best" or "latest" checkpoint of a workdir, or a converted one, on `config.data.eval_split`.

    The scores of all clips are left in the workdir (see `scores.scores_file`).

    Returns:
        The result: step (0 for a converted checkpoint), clips, metrics and seconds.

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        ValueError: the config cannot be used, the workdir is of another config, or the data do not fit it.
    """
    started = time.monotonic()
    check_config(config)
    if not is_converted(workdir):
        check_workdir(workdir, config, new_allowed=False)
    mesh = make_mesh(config.sharding.parameter_shards)
    check_split_over(config, mesh.size, training=False)
    splits = open_splits(config)
    stream = Stream(config, splits.num_classes)
    state, moment = _restore(stream, workdir, which, mesh)
    measured, scores = Evaluator(stream, splits.evaluation, mesh).measure(state, moment)
    if jax.process_index() == 0:
        file = scores_file(workdir, scores.split)
        scores.save(file)
        log.info("the scores of all clips are in %s", file)
    return {"step": int(state.step), **measured, "seconds": round(time.monotonic() - started, 1)}


def _restore(stream: Stream, workdir: Path, which: str, mesh: Mesh) -> tuple[TrainState, ScheduleValues]:
    """Returns the state of a checkpoint, on all devices, and the moment of the training that it is of."""
    if is_converted(workdir):
        trained = read_weights(workdir)
        state = stream.state_of(*weights_for(stream, trained, str(workdir)))
        epoch = stream.config.train.epochs if trained.epoch is None else trained.epoch
        return place(state, replicated(mesh)), evaluation_schedule(stream.config, max(epoch - 1, 0))
    folder = find(workdir, which, RetentionPolicy(**stream.config.checkpoint))
    state = read_state(folder, stream.shapes(), state_sharding(stream.shapes(), mesh))
    return state, evaluation_schedule(stream.config, read_run(folder).last_epoch)
