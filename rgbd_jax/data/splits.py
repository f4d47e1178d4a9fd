"""The training and evaluation clips of a config, checked against it."""

import dataclasses
import logging

import numpy as np
from ml_collections import ConfigDict

from rgbd_jax.data.source import PreparedSplit, open_split, prepared_directory
from rgbd_jax.modalities import STREAMS

REFERENCE_SHORT = 16  # frames: the reference leaves out clips of so many or fewer

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Splits:
    """Clips of a config's data set."""

    training: PreparedSplit
    evaluation: PreparedSplit
    num_classes: int  # of the network


def open_splits(config: ConfigDict) -> Splits:
    """Opens the training and evaluation split of a prepared data set; nothing is built here.

    Raises:
        ValueError: the data do not fit the config; names the field.
        FileNotFoundError: the data set is not prepared.
    """
    data = config.data
    training = open_split(data.dataset, data.data_dir, data.train_split)
    evaluation = open_split(data.dataset, data.data_dir, data.eval_split)
    if not set(STREAMS[config.modality]) <= set(training.modalities):
        only = f"{training.directory} has {' and '.join(training.modalities)} only"
        raise ValueError(f"config.modality={config.modality!r}, but {only}")
    if training.person_cropped and data.depth.reference_person_crop:
        raise ValueError(
            f"config.data.depth.reference_person_crop is set, but the depth in {training.directory} was cut around the "
            "person when it was built: leave the field out"
        )
    classes = config.model.num_classes or training.num_classes
    if classes < training.num_classes:
        raise ValueError(
            f"config.model.num_classes={classes}, but {training.directory} has {training.num_classes} classes; leave "
            "the field out to take their number"
        )
    if data.reference_protocol:
        training, evaluation = (_without_short_clips(split, config.modality) for split in (training, evaluation))
    return Splits(training, evaluation, classes)


def known_classes(config: ConfigDict) -> int | None:
    """Returns the number of classes that the config or its prepared data set gives; None if neither does."""
    data = config.data
    if config.model.num_classes or prepared_directory(data.dataset, data.data_dir) is None:
        return config.model.num_classes
    return open_split(data.dataset, data.data_dir, data.train_split).num_classes


def _without_short_clips(split: PreparedSplit, modality: str) -> PreparedSplit:
    """Leaves out the clips that the reference leaves out."""
    shortest = np.min([split.frame_counts[each] for each in STREAMS[modality]], axis=0)
    kept = np.flatnonzero(shortest > REFERENCE_SHORT)
    left_out = f"{len(split) - len(kept)} of {len(split)} clips have {REFERENCE_SHORT} frames or fewer"
    log.info("%s: %s and are left out (config.data.reference_protocol)", split.split, left_out)
    if not len(kept):
        raise ValueError(
            f"config.data.reference_protocol=True leaves no clip of split {split.split!r} of {split.directory}: "
            f"all have {REFERENCE_SHORT} frames or fewer; set it to False"
        )
    return split.select(kept.tolist())
