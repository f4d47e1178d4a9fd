"""One experiment from its config: prepare the data, then train or evaluate, in one process or in a group of them."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rgbd_jax.config import load_config, with_fields
from rgbd_jax.evaluation import evaluate as evaluate_run
from rgbd_jax.ingest.build import prepare_for
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.distributed import ALONE, DistributedConfig
from rgbd_jax.storage import as_path
from rgbd_jax.training import train as train_run


def train(
    config: str | ConfigDict,
    workdir: str | Path,
    *,
    restart: bool = False,
    group: DistributedConfig = ALONE,
    **fields: Any,
) -> dict[str, Any]:
    """Trains an experiment, or resumes it; prepares its data set first if need be.

    Args:
        config: a config, the path of one, or the name of one in the package, with the modality after a colon
            ("ntu_cs:depth").
        workdir: folder of the run (checkpoints, metrics, config), on disk or in object storage (gs://...).
        restart: whether a run that has lost all its checkpoints begins anew.
        group: the processes that train together.
        **fields: fields of the config by their full names: `**{"train.batch_size": 16}`.

    Returns:
        Step, clips and metrics of the best checkpoint, and seconds.

    Raises:
        ValueError, OSError, NonFiniteLossError, PreemptedError: as `training.train`.
    """
    return _run(functools.partial(train_run, restart=restart), config, fields, group, as_path(workdir))


def evaluate(
    config: str | ConfigDict,
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    group: DistributedConfig = ALONE,
    **fields: Any,
) -> dict[str, Any]:
    """Evaluates the "best" or "latest" checkpoint of a run, or a converted one, on `data.eval_split` of its config.

    The logits of all clips are written to `workdir/scores`. Arguments and errors are otherwise those of `train`.

    Returns:
        Step, clips, metrics and seconds.
    """
    return _run(evaluate_run, config, fields, group, as_path(workdir), checkpoint)


def _run(function: Any, config: str | ConfigDict, fields: Any, group: DistributedConfig, *arguments: Any) -> Any:
    config = with_fields(load_config(config) if isinstance(config, str) else config, fields)
    with distributed.group(group):
        if distributed.is_primary():
            prepare_for(config)
        distributed.barrier("the data set is prepared")
        return function(config, *arguments)
