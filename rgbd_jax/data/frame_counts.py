"""Numbers of frames of prepared clips, kept beside the data: to count them anew, all of the data has to be read."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.data.source import KeepEncoded, PreparedSplit
from rgbd_jax.modalities import MODALITIES

REFERENCE_SHORT = 16  # frames: clips of so many or fewer are left out by the reference
INDEX_FILE = "frame_counts.json"
_READ_AT_ONCE = 16  # clips, each of several MB
_SECONDS_BETWEEN_LINES = 30.0

log = logging.getLogger("rgbd_jax")


def frame_counts(split: PreparedSplit) -> Mapping[str, Int[np.ndarray, "n"]]:
    """Returns the numbers of frames of the clips of a split, or of a part of one, as it was opened.

    They are read from the index beside the data (`INDEX_FILE`), which a build of raw clips leaves there. What the index
    lacks, or has of a file of another size, is counted by reading the files once, and the index is written anew.

    Args:
        split: the split; of one that clips were selected from, the counts are of all clips.

    Returns:
        Modality ("rgb", "depth") -> number of frames of each clip, in the order of the split.

    Raises:
        OSError: a file cannot be read.
    """
    info = tfds.builder_from_directory(split.directory).info
    parts = tfds.core.splits.SplitDict(split_infos=info.splits.values())[split.stored_split].file_instructions
    index = _read_index(split.directory)
    files = {Path(part.filename).name: part.examples_in_shard for part in parts}
    sizes = {name: (split.directory / name).stat().st_size for name in files}
    missing = [name for name in files if name not in index or index[name]["bytes"] != sizes[name]]
    if missing:
        clips = sum(files[name] for name in missing)
        log.info("counting the frames of %d clips in %s: all of them are read, once", clips, split.directory)
        counted: dict[str, Any] = {}
        last_line = time.monotonic()
        for number, name in enumerate(missing, start=1):
            counted[name] = {"bytes": sizes[name], **_count(split.directory / name, info.features)}
            if time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                log.info("counted the frames in %d of %d files", number, len(missing))
        index = {**_read_index(split.directory), **counted}  # another process may have added to it
        _keep_index(split.directory, index)
    modalities = [modality for modality in MODALITIES if modality in info.features]
    return {
        modality: np.concatenate(
            [_part(index[Path(part.filename).name][modality], part.skip, part.take) for part in parts]
        )
        for modality in modalities
    }


def write_index(directory: Path, index: Mapping[str, Any]) -> None:
    """Writes the index of prepared clips, whole or not at all.

    Args:
        directory: where the prepared clips lie.
        index: file name -> its size (`bytes`) and, by modality, the number of frames of each of its clips, in order.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(directory / INDEX_FILE) as unfinished:
        unfinished.write_text(json.dumps(index) + "\n")


def _part(counts: list[int], skip: int, take: int) -> Int[np.ndarray, "n"]:
    return np.array(counts[skip:] if take == -1 else counts[skip : skip + take], np.int64)


def _count(file: Path, features: tfds.features.FeaturesDict) -> dict[str, list[int]]:
    """Returns modality -> number of frames of each clip of an ArrayRecord file."""
    decoders = {modality: KeepEncoded() for modality in MODALITIES if modality in features}
    counts: dict[str, list[int]] = {modality: [] for modality in decoders}
    with ArrayRecordDataSource([str(file)]) as records:
        for first in range(0, len(records), _READ_AT_ONCE):
            for record in records.__getitems__(list(range(first, min(first + _READ_AT_ONCE, len(records))))):
                example = features.deserialize_example_np(record, decoders=decoders)
                for modality, numbers in counts.items():
                    numbers.append(len(example[modality]))
    return counts


def _read_index(directory: Path) -> Mapping[str, Any]:
    """Returns file name -> its size in bytes and, for each modality, the numbers of frames; empty without an index."""
    try:
        return json.loads((directory / INDEX_FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("%s is damaged and will be replaced: %s", directory / INDEX_FILE, error)
        return {}


def _keep_index(directory: Path, index: Mapping[str, Any]) -> None:
    try:
        write_index(directory, index)
    except OSError as error:  # such as data that may only be read
        log.warning("the numbers of frames cannot be kept, and will be counted again next time: %s", error)
