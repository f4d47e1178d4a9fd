"""A trained model: its weights, config and class names, from a workdir, a converted checkpoint or a file of weights."""

import dataclasses
import logging
from pathlib import Path

from ml_collections import ConfigDict

from rgbd_jax.checkpoint.workdir import check_workdir, read_config
from rgbd_jax.config import load_config, recorded_config
from rgbd_jax.data.source import open_split, prepared_directory
from rgbd_jax.initial_state import matching_weights
from rgbd_jax.model import Model, evaluation_schedule
from rgbd_jax.models.family import ScheduleValues, Tree
from rgbd_jax.pytorch.weights import TrainedWeights, is_workdir, read_weights
from rgbd_jax.registry import resolve

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with its weights."""

    path: Path  # the workdir, converted checkpoint or file it was loaded from
    model: Model
    params: Tree
    batch_stats: Tree
    schedule: ScheduleValues  # of this checkpoint's evaluation; the temperature divides the logits
    class_names: tuple[str, ...]  # by label
    epoch: int | None  # epochs of training, None if the checkpoint does not record them
    step: int  # training steps, 0 if the checkpoint does not record them

    @property
    def config(self) -> ConfigDict:
        """The config it was trained with."""
        return self.model.config


def load_trained(path: str | Path, which: str = "best", config: ConfigDict | None = None) -> TrainedModel:
    """Loads the weights that a path, a registered name or a URL with a checksum names (see `registry.resolve`).

    A path is a workdir (its "best" or "latest" checkpoint), a converted checkpoint or a file of PyTorch or safetensors.
    A workdir records its config, as does what was converted from one, but for files of PyTorch; others need one.
    """
    path, named = resolve(path)
    weights = read_weights(path, which)
    if is_workdir(path) and config is not None:
        check_workdir(path, config, new_allowed=False)
    elif is_workdir(path):
        config = read_config(path)
    elif config is None and weights.config is not None:
        config = recorded_config(weights.config)
    elif config is None and named:
        config = load_config(named)
    elif config is None:
        raise ValueError(
            f"{path}: a converted checkpoint does not record its input settings; pass --config, such as "
            "--config configs/nvgesture.py:depth"
        )
    num_classes = weights.detect().model["num_classes"]
    model = Model(config, num_classes)
    params, batch_stats = matching_weights(model, weights)
    epochs = config.train.epochs if weights.epoch is None else weights.epoch
    schedule, class_names = evaluation_schedule(config, max(epochs - 1, 0)), _class_names(weights, config, num_classes)
    return TrainedModel(path, model, params, batch_stats, schedule, class_names, weights.epoch, weights.steps)


def _class_names(weights: TrainedWeights, config: ConfigDict, count: int) -> tuple[str, ...]:
    """Returns the names that the run or, failing that, the prepared data set records; "class 7" where neither does."""
    names = weights.class_names
    if not names and prepared_directory(config.data.dataset, config.data.data_dir) is not None:
        names = open_split(config.data.dataset, config.data.data_dir, config.data.train_split).class_names
    if not names or len(names) > count:
        log.warning("%s: the names of the classes are unknown; classes are reported by number", weights.source)
        names = ()
    return (*names, *(f"class {label}" for label in range(len(names), count)))
