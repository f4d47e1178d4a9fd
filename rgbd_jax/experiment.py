"""One experiment from its config: prepare the data, then train or evaluate, in one process or in a group of them."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rgbd_jax.checkpoint.workdir import check_workdir
from rgbd_jax.config import check_config, load_config, with_fields
from rgbd_jax.evaluation import evaluate as evaluate_run
from rgbd_jax.ingest.build import prepare_for
from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.distributed import ALONE, DistributedConfig
from rgbd_jax.pytorch.weights import is_converted
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
    function = functools.partial(train_run, restart=restart)
    return _run(function, config, fields, group, as_path(workdir), new_allowed=True)


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
    function = functools.partial(evaluate_run, which=checkpoint)
    return _run(function, config, fields, group, as_path(workdir), new_allowed=False)


def _run(
    function: Any, config: str | ConfigDict, fields: Any, group: DistributedConfig, workdir: Path, new_allowed: bool
) -> Any:
    config = with_fields(load_config(config) if isinstance(config, str) else config, fields)
    with distributed.group(group):
        check_config(config)  # first, since a data set can take hours to build
        if new_allowed or not is_converted(workdir):
            check_workdir(workdir, config, new_allowed=new_allowed)
        if distributed.is_primary():
            prepare_for(config)
        distributed.barrier("the data set is prepared")
        return function(config, workdir)
