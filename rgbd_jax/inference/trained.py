"""A trained network, ready to be asked: its weights, its config and the names of its classes."""

import dataclasses
import logging
from pathlib import Path

from ml_collections import ConfigDict

from rgbd_jax.checkpoint.workdir import check_workdir, read_class_names, read_config
from rgbd_jax.data.source import open_split, prepared_directory
from rgbd_jax.initial_state import weights_for
from rgbd_jax.pytorch.convert import match_network
from rgbd_jax.pytorch.names import ConversionError
from rgbd_jax.pytorch.weights import is_workdir, read_weights
from rgbd_jax.step import Stream, Tree, evaluation_schedule

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights.

    Attributes:
        path: the workdir, converted checkpoint or file that it is of.
        stream: the network's stream, with its config.
        params: parameters.
        batch_stats: running statistics.
        temperature: divides the logits of one stream, as in the evaluation of this checkpoint.
        class_names: a name for every class, by label.
        epoch: how many epochs it was trained for, None where the checkpoint does not tell.
        step: how many training steps it has seen, 0 where the checkpoint does not tell.
    """

    path: Path
    stream: Stream
    params: Tree
    batch_stats: Tree
    temperature: float
    class_names: tuple[str, ...]
    epoch: int | None
    step: int

    @property
    def config(self) -> ConfigDict:
        """The config that the network was trained with."""
        return self.stream.config


def load_trained(path: str | Path, which: str = "best", config: ConfigDict | None = None) -> TrainedNetwork:
    """Loads a trained network.

    Args:
        path: workdir of a run, a converted checkpoint, or a file of PyTorch or safetensors.
        which: the "best" or the "latest" checkpoint of a workdir.
        config: the experiment's config; of a workdir its own is taken when none is given.

    Raises:
        FileNotFoundError: there is nothing, or no checkpoint yet.
        ValueError: the checkpoint is damaged or of another network than the config's; or a config is needed.
    """
    path = Path(path).expanduser()
    trained = read_weights(path, which)
    if is_workdir(path):
        if config is not None:
            check_workdir(path, config, new_allowed=False)
        else:
            config = read_config(path)
    elif config is None:
        raise ValueError(
            f"{path} does not say which frames its network sees: give --config, such as "
            "--config=configs/nvgesture.py:depth"
        )
    try:
        classes = match_network(trained).detected.model["num_classes"]
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    stream = Stream(config, classes)
    params, batch_stats = weights_for(stream, trained, str(path))
    epoch = config.train.epochs if trained.epoch is None else trained.epoch
    moment = evaluation_schedule(config, max(epoch - 1, 0))
    return TrainedNetwork(
        path=path,
        stream=stream,
        params=params,
        batch_stats=batch_stats,
        temperature=float(moment.temperature),
        class_names=class_names(path, config, classes),
        epoch=trained.epoch,
        step=trained.steps,
    )


def class_names(path: Path, config: ConfigDict, count: int) -> tuple[str, ...]:
    """Returns a name for each of `count` classes: the run's, else the prepared data set's, else their numbers."""
    names = read_class_names(path)
    if not names and prepared_directory(config.data.dataset, config.data.data_dir) is not None:
        names = open_split(config.data.dataset, config.data.data_dir, config.data.train_split).class_names
    if not names or len(names) > count:
        log.warning("the names of the classes of %s are not known: they are told by number", path)
        names = ()
    return (*names, *(f"class {label}" for label in range(len(names), count)))
