"""Prepared clips, read back at random from ArrayRecord files without TensorFlow; frames stay encoded."""

import copy
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, cast

import tensorflow_datasets as tfds

from rgbd_jax.data import protocols
from rgbd_jax.modalities import MODALITIES


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """One clip as it is stored.

    Attributes:
        name: name of the clip, unique in its split.
        label: class number, counted from 0.
        frames: modality ("rgb", "depth") to its encoded frames (JPEG or PNG), in time order.
    """

    name: str
    label: int
    frames: Mapping[str, Sequence[bytes]]


class ClipSource(Protocol):
    """Random access to clips."""

    def __len__(self) -> int:
        """Returns the number of clips."""

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        """Returns the clip at `index`."""


class KeepEncoded(tfds.decode.SkipDecoding):
    """Hands a sequence of images over as the bytes that are stored."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        """Returns the sequence as it is stored."""
        return serialized_example


class PreparedSplit:
    """The clips of one split of a prepared data set: a `ClipSource` that can be pickled.

    Attributes:
        directory: where the prepared data set lies.
        split: the split, as TFDS writes it ("train", "train[:80%]"), or one of a protocol ("cs_train").
        stored_split: the same in terms of the splits that are stored.
        class_names: the classes, by label; those of the protocol, where the split is one of a protocol.
        modalities: which of "rgb" and "depth" the data set has.
        person_cropped: whether single-channel depth was cut around the person when the data set was built.
    """

    def __init__(self, directory: str | Path, split: str):
        """Opens `split` of the prepared data set in `directory` (the folder of one version).

        Raises:
            ValueError: the data set has no such split.
        """
        self.directory = Path(directory)
        self.split = split
        builder = tfds.builder_from_directory(self.directory)
        features = builder.info.features
        metadata = builder.info.metadata or {}
        label = cast(tfds.features.ClassLabel, features["label"])
        self.modalities: tuple[str, ...] = tuple(modality for modality in MODALITIES if modality in features)
        self.person_cropped = bool(metadata.get("person_cropped", False))
        base_splits = set(builder.info.splits)
        protocol_splits = protocols.from_metadata(metadata)
        try:
            self.stored_split, classes = protocols.resolve(split, protocol_splits, base_splits, len(label.names))
            self._records = builder.as_data_source(
                self.stored_split, decoders={modality: KeepEncoded() for modality in self.modalities}
            )
        except ValueError as error:
            known = protocols.describe(protocol_splits, base_splits)
            raise ValueError(
                f"{self.directory}: cannot open split {split!r}; there are {known} "
                f"(and parts of them, such as 'train[:80%]'): {error}"
            ) from error
        self.class_names: tuple[str, ...] = tuple(label.names[:classes])
        self._positions: Sequence[int] = range(len(self._records))

    def select(self, positions: Sequence[int]) -> "PreparedSplit":
        """Returns the split with the clips at `positions` alone, in that order."""
        selected = copy.copy(self)
        selected._positions = [self._positions[position] for position in positions]
        return selected

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        position = operator.index(index)
        if not 0 <= position < len(self):
            raise IndexError(f"clip {position} of {len(self)} in split {self.split!r} of {self.directory}")
        example = self._records[self._positions[position]]
        return ClipRecord(
            name=example["name"].decode(),
            label=int(example["label"]),
            frames={modality: tuple(example[modality]) for modality in self.modalities},
        )


def prepared_directory(dataset: str, data_dir: str | Path) -> Path | None:
    """Returns the folder of the newest prepared version of `dataset` under `data_dir`, None if there is none."""
    folder = Path(data_dir).expanduser() / dataset
    versions = [path.parent for path in folder.glob("*/dataset_info.json") if path.parent.name[0].isdigit()]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def open_split(dataset: str, data_dir: str | Path, split: str | None) -> PreparedSplit:
    """Opens one split of a prepared data set.

    Args:
        dataset: name of the data set, such as "rgbd_folder".
        data_dir: the folder under which prepared data sets lie.
        split: the split or a part of it, as TFDS writes it: "train", "train[:80%]"; or one of a protocol: "cs_train".
            None takes "train", or the first split of the first protocol where the data set has protocols.

    Returns:
        The clips of the split.

    Raises:
        FileNotFoundError: the data set is not prepared.
        ValueError: the data set has no such split.
    """
    directory = prepared_directory(dataset, data_dir)
    if directory is None:
        folder = (Path(data_dir).expanduser() / dataset).absolute()
        raise FileNotFoundError(
            f"{dataset} is not prepared: there is no prepared data in {folder}; build it with "
            f"`python scripts/build_dataset.py {dataset} --data_dir {data_dir}` (and --raw_dir, where it has raw clips)"
        )
    if split is None:
        split = next(iter(protocols.from_metadata(tfds.builder_from_directory(directory).info.metadata)), "train")
    return PreparedSplit(directory, split)
