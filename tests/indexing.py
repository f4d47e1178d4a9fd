"""Writes the index of prepared clips; to be removed once builds write it."""

from pathlib import Path

import tensorflow_datasets as tfds

from rgbd_jax.data.index import write_index
from rgbd_jax.data.source import KeepEncoded
from rgbd_jax.modalities import MODALITIES


def write_indices(data_dir: Path) -> None:
    """Writes the index of every split of the data sets under `data_dir`."""
    for info in data_dir.glob("*/*/dataset_info.json"):
        builder = tfds.builder_from_directory(info.parent)
        modalities = [modality for modality in MODALITIES if modality in builder.info.features]
        for split in builder.info.splits:
            clips = list(builder.as_data_source(split, decoders={m: KeepEncoded() for m in modalities}))
            names, labels = [clip["name"].decode() for clip in clips], [clip["label"] for clip in clips]
            write_index(info.parent, split, names, labels, {m: [len(clip[m]) for clip in clips] for m in modalities})
