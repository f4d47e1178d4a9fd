"""Evaluation: every clip of a split counted once, in batches over all devices."""

import time
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rgbd_jax import metrics
from rgbd_jax.checkpoint import Checkpoints, check_workdir
from rgbd_jax.data import pipeline
from rgbd_jax.data.source import ClipSource
from rgbd_jax.dataset import open_splits
from rgbd_jax.sharding import clip_mesh, global_batch, local_batch_size, replicated
from rgbd_jax.steps import Moment, Stream, TrainState, moment_at


class Evaluator:
    """Measures a network on the clips of one split."""

    def __init__(self, stream: Stream, source: ClipSource, mesh: Mesh):
        self._config = stream.config
        self._source = source
        self._mesh = mesh
        self._batch_size = local_batch_size(self._config.eval.batch_size, "config.eval.batch_size")
        self._step = jax.jit(stream.evaluation_step, out_shardings=replicated(mesh))

    def __call__(self, state: TrainState, moment: Moment) -> dict[str, float]:
        """Returns the metrics over all clips (see `metrics.summarise`) and their number, `clips`."""
        batches = pipeline.eval_batches(
            self._source,
            self._config,
            batch_size=self._batch_size,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        totals: dict | None = None
        for batch in batches:
            sums = self._step(state.params, state.batch_stats, global_batch(batch, self._mesh), moment)
            totals = metrics.add(totals, jax.device_get(sums))
        assert totals is not None  # eval_batches gives at least one batch
        return {"clips": int(totals["clips"]), **metrics.summarise(totals)}


def evaluate(config: ConfigDict, workdir: Path, which: str) -> dict:
    """Evaluates the "best" or "latest" checkpoint of a workdir on `config.data.eval_split`.

    Returns:
        The result: step, clips, metrics and seconds.

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        ValueError: the workdir is of another config, or the data do not fit it.
    """
    started = time.monotonic()
    check_workdir(workdir, config, new_allowed=False)
    splits = open_splits(config)
    mesh = clip_mesh()
    stream = Stream(config, splits.num_classes)
    checkpoints = Checkpoints(workdir, config.checkpoint.best_metric, read_only=True)
    step = checkpoints.step_of(which)
    if step is None:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet; train until the first evaluation is done")
    state, _ = checkpoints.restore(step, stream.shapes(), replicated(mesh))
    history = [epoch for epoch in checkpoints.history() if epoch["step"] <= step]
    moment = moment_at(config, history[-1]["epoch"] - 1, [epoch["top1"] for epoch in history])
    measured = Evaluator(stream, splits.evaluation, mesh)(state, moment)
    return {"step": step, **measured, "seconds": round(time.monotonic() - started, 1)}
