"""The training and evaluation clips that a config asks for, prepared first if need be, and checked against it."""

import dataclasses
import logging

import numpy as np
from ml_collections import ConfigDict

import rgbd_jax.ingest.build
from rgbd_jax.data.frame_counts import REFERENCE_SHORT, frame_counts
from rgbd_jax.data.source import PreparedSplit, open_split, prepared_directory
from rgbd_jax.modalities import STREAMS
from rgbd_jax.parallel import distributed

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Splits:
    """Clips of a config's data set.

    Attributes:
        training: the clips to train on.
        evaluation: the clips to evaluate on.
        num_classes: number of classes of the network.
    """

    training: PreparedSplit
    evaluation: PreparedSplit
    num_classes: int


def open_splits(config: ConfigDict) -> Splits:
    """Opens the training and evaluation split, building the data set first where `config.data` allows it.

    Raises:
        ValueError: the data do not fit the config (names the field), or raw clips are faulty (names the file).
        FileNotFoundError: the data set is neither prepared nor can it be built.
    """
    data = config.data
    if distributed.is_primary():
        _build_if_need_be(config)
    distributed.barrier("the data set is prepared")
    training = open_split(data.dataset, data.data_dir, data.train_split)
    evaluation = open_split(data.dataset, data.data_dir, data.eval_split)
    if not set(STREAMS[config.modality]) <= set(training.modalities):
        raise ValueError(
            f"config.modality={config.modality!r}, but {training.directory} has "
            f"{' and '.join(training.modalities)} only"
        )
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
    if config.model.num_classes:
        return config.model.num_classes
    if prepared_directory(data.dataset, data.data_dir) is None:
        return None
    return open_split(data.dataset, data.data_dir, data.train_split).num_classes


def _build_if_need_be(config: ConfigDict) -> None:
    data = config.data
    generated = data.dataset == "rgbd_demo"
    if data.raw_dir or (generated and prepared_directory(data.dataset, data.data_dir) is None):
        info = rgbd_jax.ingest.build.prepare(
            data.dataset, data_dir=data.data_dir, raw_dir=data.raw_dir or None, skip_bad_clips=data.skip_bad_clips
        )
        log.info("%s is prepared in %s", data.dataset, info.directory)


def _without_short_clips(split: PreparedSplit, stream: str) -> PreparedSplit:
    """Leaves out the clips that the reference leaves out, and says how many these are."""
    counts = frame_counts(split)
    shortest = np.min([counts[modality] for modality in STREAMS[stream]], axis=0)
    kept = np.flatnonzero(shortest > REFERENCE_SHORT)
    log.info(
        "%s: %d of %d clips have %d frames or fewer and are left out (config.data.reference_protocol)",
        split.split, len(split) - len(kept), len(split), REFERENCE_SHORT,
    )  # fmt: skip
    if not len(kept):
        raise ValueError(
            f"config.data.reference_protocol=True leaves no clip of split {split.split!r} of {split.directory}: "
            f"all have {REFERENCE_SHORT} frames or fewer; set it to False"
        )
    return split.select(kept.tolist())
