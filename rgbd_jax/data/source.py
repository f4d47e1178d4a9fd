"""Prepared clips, read at random from ArrayRecord files without TensorFlow; frames stay encoded."""

import copy
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, cast

import grain
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from rgbd_jax.data import protocols
from rgbd_jax.data.index import ClipIndex, index_file, read_index, rebuild_advice
from rgbd_jax.modalities import MODALITIES


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """One clip as it is stored."""

    name: str  # unique in its split
    label: int  # class, counted from 0
    frames: Mapping[str, Sequence[bytes]]  # modality -> encoded frames (JPEG or PNG), in time order


ClipSource = grain.sources.RandomAccessDataSource[ClipRecord]


class KeepEncoded(tfds.decode.SkipDecoding):
    """Keeps the frames of a sequence encoded."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:  # noqa: D102
        return serialized_example


class PreparedSplit:
    """The clips of one split of a prepared data set: a `ClipSource` that can be pickled."""

    directory: Path  # of the prepared data set
    split: str  # as TFDS writes it ("train", "train[:80%]"), or one of a protocol ("cs_train")
    class_names: tuple[str, ...]  # by label; those of the protocol, where the split is one of a protocol
    modalities: tuple[str, ...]  # which of "rgb" and "depth" the data set has
    person_cropped: bool  # whether single-channel depth was cut around the person when the data set was built
    names: tuple[str, ...]  # of the clips
    labels: Int[np.ndarray, " n"]
    frame_counts: Mapping[str, Int[np.ndarray, " n"]]  # modality -> number of frames of each clip

    def __init__(self, directory: str | Path, split: str | None):
        """Opens a split as `open_split` does, of the folder of one version."""
        self.directory = Path(directory)
        builder = tfds.builder_from_directory(self.directory)
        info, metadata = builder.info, builder.info.metadata or {}
        label = cast(tfds.features.ClassLabel, info.features["label"])
        self.modalities = tuple(modality for modality in MODALITIES if modality in info.features)
        self.person_cropped = bool(metadata.get("person_cropped", False))
        protocol_splits = protocols.from_metadata(metadata)
        self.split = split if split is not None else next(iter(protocol_splits), "train")
        try:
            base_splits, classes = protocols.resolve(self.split, protocol_splits, set(info.splits), len(label.names))
            decoders = {modality: KeepEncoded() for modality in self.modalities}
            self._records = builder.as_data_source(base_splits, decoders=decoders)
            parts = tfds.core.ReadInstruction.from_spec(base_splits).to_absolute(info.splits)
        except ValueError as error:
            known = ", ".join(sorted(info.splits))
            if protocol_splits:
                known = f"{', '.join(sorted(protocol_splits))} (protocols) and {known} (their parts)"
            raise ValueError(
                f"{self.directory}: cannot open split {self.split!r}; there are {known} "
                f"(and parts of them, such as 'train[:80%]'): {error}"
            ) from error
        self.class_names = tuple(label.names[:classes])
        self._rows: Sequence[int] = range(len(self._records))
        indices = [(self._index(info, part.splitname), slice(part.from_, part.to)) for part in parts]
        self.names = tuple(name for index, rows in indices for name in index.names[rows])
        self.labels = np.concatenate([index.labels[rows] for index, rows in indices])
        self.frame_counts = {
            modality: np.concatenate([index.frames[modality][rows] for index, rows in indices])
            for modality in self.modalities
        }

    def _index(self, info: tfds.core.DatasetInfo, split: str) -> ClipIndex:
        index, clips = read_index(self.directory, split), info.splits[split].num_examples
        if (len(index.names), tuple(index.frames)) != (clips, self.modalities):
            raise ValueError(
                f"{index_file(self.directory, split)} lists {len(index.names)} clips of {', '.join(index.frames)}, but "
                f"{clips} of {', '.join(self.modalities)} are stored; {rebuild_advice(self.directory)}"
            )
        return index

    def select(self, rows: Sequence[int]) -> "PreparedSplit":
        """Returns the split with the clips at `rows` alone, in that order."""
        selected = copy.copy(self)
        selected._rows = [self._rows[row] for row in rows]
        selected.names = tuple(self.names[row] for row in rows)
        selected.labels = self.labels[rows]
        selected.frame_counts = {modality: counts[rows] for modality, counts in self.frame_counts.items()}
        return selected

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        row = operator.index(index)
        if not 0 <= row < len(self):
            raise IndexError(f"clip {row} of {len(self)} in split {self.split!r} of {self.directory}")
        example = self._records[self._rows[row]]
        frames = {modality: tuple(example[modality]) for modality in self.modalities}
        return ClipRecord(example["name"].decode(), int(example["label"]), frames)


def prepared_directory(dataset: str, data_dir: str | Path) -> Path | None:
    """Returns the folder of the newest prepared version of `dataset` under `data_dir`, None if there is none."""
    folder = Path(data_dir).expanduser() / dataset
    versions = [path.parent for path in folder.glob("*/dataset_info.json") if path.parent.name[0].isdigit()]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def open_split(dataset: str, data_dir: str | Path, split: str | None) -> PreparedSplit:
    """Opens one split of the newest prepared version of `dataset` under `data_dir`.

    `split` is such as "train", "train[:80%]" or, of a protocol, "cs_train"; None takes the first split of the first
    protocol, or "train" without protocols.

    Raises:
        FileNotFoundError: the data set is not prepared, or its index is missing.
        ValueError: the data set has no such split, or its index is damaged.
    """
    directory = prepared_directory(dataset, data_dir)
    if directory is None:
        folder = (Path(data_dir).expanduser() / dataset).absolute()
        raise FileNotFoundError(
            f"{dataset} is not prepared: there is no prepared data in {folder}; build it with "
            f"`python -m rgbd_jax data build {dataset} --data_dir {data_dir}` (and --raw_dir, where it has raw clips)"
        )
    return PreparedSplit(directory, split)
