"""Clips to try the page with, of the evaluation split of the data set that the network was trained on."""

import dataclasses
import logging

import numpy as np

from rgbd_jax.data.source import ClipRecord, PreparedSplit, open_split, prepared_directory
from rgbd_jax.inference.trained import TrainedNetwork
from rgbd_jax.modalities import STREAMS

_LOOKED_AT = 4  # clips for each example: classes that are not among them have none

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Some clips of a prepared split.

    Attributes:
        split: the prepared clips.
        positions: name as the page shows it -> place in the split.
    """

    split: PreparedSplit
    positions: dict[str, int]

    def __getitem__(self, name: str) -> ClipRecord:
        return self.split[self.positions[name]]


def find_examples(trained: TrainedNetwork, count: int, data_dir: str = "") -> Examples | None:
    """Returns up to `count` clips, of as many classes as there are; None where the data set is not prepared here.

    Args:
        trained: the network; its config names data set and split.
        count: how many; 0: none.
        data_dir: the folder under which prepared data sets lie; empty: the config's.
    """
    data = trained.config.data
    folder = data_dir or data.data_dir
    if count < 1:
        return None
    if prepared_directory(data.dataset, folder) is None:
        log.info("%s is not prepared in %s: the page has no example clips (--data_dir)", data.dataset, folder)
        return None
    split = open_split(data.dataset, folder, data.eval_split)
    if not set(STREAMS[trained.config.modality]) <= set(split.modalities):
        log.info("%s has no %s clips: the page has no examples", split.directory, trained.config.modality)
        return None
    found: dict[int, tuple[str, int]] = {}
    for position in np.unique(np.linspace(0, len(split) - 1, _LOOKED_AT * count).round().astype(int)).tolist():
        record = split[position]
        found.setdefault(record.label, (record.name, position))
    labels = sorted(found)
    if len(labels) > count:
        labels = [labels[place] for place in np.linspace(0, len(labels) - 1, count).round().astype(int)]
    return Examples(split, {f"{split.class_names[label]}: {found[label][0]}": found[label][1] for label in labels})
