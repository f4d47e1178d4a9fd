"""Prepared data sets: the clips of a split, read at random from ArrayRecord files without TensorFlow.

Base splits are what is stored: they share no clip, and each has an index, the names, labels and frame counts of its
clips. A split of a protocol, such as "cs_train", is a union of base splits, so that no clip is stored twice.
"""

import collections
import dataclasses
import json
import logging
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypedDict, TypeVar, cast

import grain
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.data.frame_files import StoredFrames
from rgbd_jax.modalities import MODALITIES, STREAMS, training_modalities
from rgbd_jax.storage import absolute, as_path, is_remote

REFERENCE_SHORT = 16  # frames: the reference leaves out clips of so many or fewer
_TERM = re.compile(r"([\w-]+)(\[[^\]]*\])?")
_PERCENTAGES = re.compile(r"\[(-?[0-9.]+%)?:(-?[0-9.]+%)?\]")

T = TypeVar("T")

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """One clip as it is stored."""

    name: str  # unique in its split
    label: int  # class, counted from 0
    frames: Mapping[str, Sequence[Any]]  # modality -> frames, in time order: encoded (JPEG or PNG), or arrays


ClipSource = grain.sources.RandomAccessDataSource[ClipRecord]


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """The entry of a clip in the index."""

    name: str
    label: int
    frame_counts: Mapping[str, int]  # by modality


class ProtocolSplit(TypedDict):
    """One split of a protocol, as the metadata of a data set has it under "protocols"."""

    splits: Sequence[str]  # the base splits that make it up
    classes: int  # its classes are so many first ones of the data set


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PreparedSplit:
    """The clips of one split of a prepared data set: a `ClipSource` that can be pickled."""

    directory: Path  # of the prepared data set
    split: str  # as TFDS writes it ("train", "train[:80%]"), or one of a protocol ("cs_train")
    class_names: tuple[str, ...]  # by label; those of the protocol, where the split is one of a protocol
    modalities: tuple[str, ...]  # which of "rgb" and "depth" the data set has
    fast_depth: bool  # whether depth lies in files beside the records
    person_cropped: bool  # whether single-channel depth was cut around the person when the data set was built
    clips: Sequence[ClipInfo]
    rows: Sequence[int]  # of the clips in `records`
    records: Any  # all that TFDS reads, each as the bytes of a tf.train.Example

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the clips."""
        return tuple(clip.name for clip in self.clips)

    def select(self, indices: Sequence[int]) -> "PreparedSplit":
        """Returns the split with the clips at `indices` alone, in that order."""
        return dataclasses.replace(self, clips=[self.clips[i] for i in indices], rows=[self.rows[i] for i in indices])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> ClipRecord:
        # TFDS would copy every frame; here those are copied that are taken.
        record = self.records[self.rows[operator.index(index)]]
        features = tf_example_pb2.Example.FromString(record).features.feature
        frames = {modality: features[modality].bytes_list.value for modality in self.modalities}
        if self.fast_depth:
            frames["depth"] = StoredFrames(self.directory, frames["depth"])
        return ClipRecord(features["name"].bytes_list.value[0].decode(), features["label"].int64_list.value[0], frames)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The clips of a config."""

    training: PreparedSplit
    evaluation: PreparedSplit
    num_classes: int  # of the network


def open_splits(config: ConfigDict) -> Splits:
    """Opens the training and evaluation split of a config; ValueError names the field that the data do not fit."""
    data = config.data
    training = open_split(data.dataset, data.data_dir, data.train_split)
    evaluation = open_split(data.dataset, data.data_dir, data.eval_split)
    if not set(training_modalities(config)) <= set(training.modalities):
        only = f"{training.directory} has {' and '.join(training.modalities)} only"
        field = f"loss.teacher={config.loss.teacher}" if config.loss.teacher else f"modality={config.modality!r}"
        raise ValueError(f"config.{field}, but {only}")
    if training.person_cropped and data.depth.reference_person_crop:
        raise ValueError(
            f"config.data.depth.reference_person_crop is set, but the depth in {training.directory} was cut around the "
            "person when it was built: leave the field out"
        )
    classes = config.model.num_classes or len(training.class_names)
    if classes < len(training.class_names):
        raise ValueError(
            f"config.model.num_classes={classes}, but {training.directory} has {len(training.class_names)} classes; "
            "leave the field out to take their number"
        )
    if data.reference_protocol:
        training, evaluation = (_without_short_clips(split, config.modality) for split in (training, evaluation))
    return Splits(training, evaluation, classes)


def _without_short_clips(split: PreparedSplit, modality: str) -> PreparedSplit:
    lengths = [min(clip.frame_counts[each] for each in STREAMS[modality]) for clip in split.clips]
    kept = [index for index, length in enumerate(lengths) if length > REFERENCE_SHORT]
    left_out = f"{len(split) - len(kept)} of {len(split)} clips have {REFERENCE_SHORT} frames or fewer"
    log.info("%s: %s and are left out (config.data.reference_protocol)", split.split, left_out)
    if not kept:
        raise ValueError(
            f"config.data.reference_protocol=True leaves no clip of split {split.split!r} of {split.directory}: "
            f"all have {REFERENCE_SHORT} frames or fewer; set it to False"
        )
    return split.select(kept)


def known_classes(config: ConfigDict) -> int | None:
    """Returns the number of classes that the config or its prepared data set gives; None if neither does."""
    data = config.data
    if config.model.num_classes or prepared_directory(data.dataset, data.data_dir) is None:
        return config.model.num_classes
    return len(open_split(data.dataset, data.data_dir, data.train_split).class_names)


def prepared_directory(dataset: str, data_dir: str | Path) -> Path | None:
    """Returns the folder of the newest prepared version of `dataset` under `data_dir`, None if there is none."""
    folder = as_path(data_dir) / dataset
    versions = [path.parent for path in folder.glob("*/dataset_info.json") if path.parent.name[0].isdigit()]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def copy_advice(dataset: str, data_dir: str | Path) -> str:
    """Returns how a data set that was built on disk comes into object storage."""
    return f"copy it there: `gcloud storage cp --recursive data/{dataset} {data_dir}/`"


def open_split(dataset: str, data_dir: str | Path, split: str | None) -> PreparedSplit:
    """Opens one split of the newest prepared version of `dataset` under `data_dir`.

    `split` is such as "train", "train[:80%]" or, of a protocol, "cs_train"; None takes the first split of the first
    protocol, or "train" without protocols.
    """
    directory = prepared_directory(dataset, data_dir)
    if directory is None:
        folder = absolute(as_path(data_dir) / dataset)
        command = f"python -m rgbd_jax data build {dataset} --data_dir {'data' if is_remote(folder) else data_dir}"
        advice = f"; then {copy_advice(dataset, data_dir)}" if is_remote(folder) else ""
        raise FileNotFoundError(
            f"{dataset} is not prepared: there is no prepared data in {folder}; build it with `{command}` (and "
            f"--raw_dir, where it has raw clips){advice}"
        )
    builder = tfds.builder_from_directory(directory)
    info, metadata = builder.info, builder.info.metadata or {}
    protocols = metadata.get("protocols", {})
    split = next(iter(protocols), "train") if split is None else split
    class_names = cast(tfds.features.ClassLabel, info.features["label"]).names
    modalities = tuple(modality for modality in MODALITIES if modality in info.features)
    try:
        base_splits, classes = resolve(split, protocols, set(info.splits), len(class_names))
        records = builder.as_data_source(base_splits, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        parts = tfds.core.ReadInstruction.from_spec(base_splits).to_absolute(info.splits)
    except ValueError as error:
        known = ", ".join(sorted(info.splits))
        if protocols:
            known = f"{', '.join(sorted(protocols))} (protocols) and {known} (their parts)"
        raise ValueError(
            f"{directory}: cannot open split {split!r}; there are {known} (and parts of them, such as 'train[:80%]'): "
            f"{error}"
        ) from error
    clips: list[ClipInfo] = []
    for part in parts:
        index, stored = read_index(directory, part.splitname), info.splits[part.splitname].num_examples
        listed = {modality for clip in index for modality in clip.frame_counts}
        if len(index) != stored or listed != set(modalities):
            raise ValueError(
                f"{index_file(directory, part.splitname)} lists {len(index)} clips of {', '.join(sorted(listed))}, but "
                f"{stored} of {', '.join(modalities)} are stored; {_rebuild_advice(directory)}"
            )
        clips += index[part.from_ : part.to]
    fast_depth, cropped = metadata.get("depth_storage") == "fast", bool(metadata.get("person_cropped", False))
    names = tuple(class_names[:classes])
    rows = range(len(clips))
    return PreparedSplit(directory, split, names, modalities, fast_depth, cropped, clips, rows, records)


def resolve(
    spec: str, protocols: Mapping[str, ProtocolSplit], base_splits: Collection[str], num_classes: int
) -> tuple[str, int]:
    """Returns a split in base splits, in the notation of TFDS ("a+b[:20%]"), and its number of classes.

    A percentage of a protocol split, such as "cs_train[:20%]", is that percentage of each of its base splits.
    """
    terms: list[str] = []
    classes = 0
    used: dict[str, str] = {}
    for term in re.split(r"\s*\+\s*", spec.strip()):
        match = _TERM.fullmatch(term)
        name, part = (match[1], match[2] or "") if match else ("", "")
        if name not in protocols and name not in base_splits:
            raise ValueError(f"there is no split {term!r}")
        split = protocols.get(name, ProtocolSplit(splits=[name], classes=num_classes))
        if name in protocols and part and not _PERCENTAGES.fullmatch(part):
            raise ValueError(
                f"{term!r}: a part of a protocol's split must be given in percent, such as {name}[:20%]; "
                f"{name} is stored as {len(split['splits'])} splits, each of which gives that percentage"
            )
        classes = max(classes, split["classes"])
        for base_split in split["splits"]:
            terms.append(f"{base_split}{part}")
            if protocols and used.setdefault(base_split, name) != name:
                raise ValueError(f"{spec!r}: {used[base_split]} and {name} share clips, those of {base_split}")
    return "+".join(terms), classes


def to_base_splits(
    clips: Mapping[str, T], members: Mapping[str, Collection[str]]
) -> tuple[dict[str, list[T]], dict[str, list[str]]]:
    """Cuts clips (name -> any value) into base splits, one for each combination of protocol splits that some are in.

    `members` are protocol split, such as "cs_train" -> the names of its clips, whether they are in `clips` or not.

    Returns:
        Base split -> its clips in the order of `clips`, and protocol split -> its base splits. Clips that are in no
        protocol split and protocol splits without a clip are left out.
    """
    base: dict[tuple[str, ...], list[T]] = collections.defaultdict(list)
    for name, clip in clips.items():
        splits = tuple(split for split, names in members.items() if name in names)
        if splits:
            base[splits].append(clip)
    unions = {split: ["-".join(splits) for splits in base if split in splits] for split in members}
    return {"-".join(splits): part for splits, part in base.items()}, {s: parts for s, parts in unions.items() if parts}


def index_file(directory: Path, split: str) -> Path:
    """Returns the path of the index of a base split in the folder of a prepared data set."""
    return directory / f"index_{split}.json"


def write_index(directory: Path, split: str, clips: Sequence[ClipInfo]) -> None:
    """Writes the index of a base split, of at least one clip, in the order of its records."""
    counts = {modality: [clip.frame_counts[modality] for clip in clips] for modality in clips[0].frame_counts}
    content = {"names": [clip.name for clip in clips], "labels": [clip.label for clip in clips], "frames": counts}
    with atomic_write(index_file(directory, split)) as unfinished:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_index(directory: Path, split: str) -> list[ClipInfo]:
    """Reads the index of a base split; one that is missing or damaged is an error with the advice to build again."""
    file = index_file(directory, split)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        modalities, counts = content["frames"].keys(), zip(*content["frames"].values(), strict=True)
        clips = zip(content["names"], content["labels"], counts, strict=True)
        return [ClipInfo(name, label, dict(zip(modalities, each, strict=True))) for name, label, each in clips]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is missing, the index of clips; {_rebuild_advice(directory)}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not an index of clips ({error!r}); {_rebuild_advice(directory)}") from error


def _rebuild_advice(directory: Path) -> str:
    return f"remove {directory} and build it again with `python -m rgbd_jax data build {directory.parent.name}`"
