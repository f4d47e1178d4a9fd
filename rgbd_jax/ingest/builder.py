"""The base class of the TFDS builders of raw clips: check everything, then read, verify and store clips by shards."""

import abc
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from rgbd_jax.data.source import ClipInfo, write_index
from rgbd_jax.ingest.clip_files import COLOUR, ClipSpec, FrameKind, clip_kind, read_clip
from rgbd_jax.ingest.discovery import RawClips
from rgbd_jax.ingest.problems import Problem, RawDataError, bad_data
from rgbd_jax.ingest.shards import REPORTS, Runner, ShardTask, build_shards, cut, locked, run_locally

DEPTH_STORAGES = ("compact", "fast")  # the first one by default

log = logging.getLogger("rgbd_jax")


class RawClipsBuilder(tfds.core.dataset_builder.FileReaderBuilder):
    """Builds a data set from raw clips; a subclass finds them.

    A record holds `name`, `label` and the encoded frames of each modality; records are in the order of the raw data.
    The frames of a modality are all of one kind, which the features state. With the `depth_storage` "fast", depth
    frames lie in a file beside each shard, uncompressed unless the raw ones are of 8 bits, and records hold their
    places (`data.frame_files`).

    `runner` writes the shards, by default on all cores of this machine. With `skip_bad_clips`, bad clips are left out
    and listed in the log instead of refused; `kwargs` are passed to TFDS (`data_dir`).
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        raw_dir: str | os.PathLike,
        skip_bad_clips: bool = False,
        depth_storage: str = DEPTH_STORAGES[0],
        runner: Runner = run_locally,
        **kwargs: Any,
    ):
        self.raw_dir = Path(raw_dir)
        self._skip_bad_clips = skip_bad_clips
        self._runner = runner
        self._raw = self.find_clips(self.raw_dir)
        if self._raw.problems and not skip_bad_clips:
            raise RawDataError(self._raw.problems)
        for split, clips in self._raw.splits.items():
            if not clips:
                problem = Problem(f"split {split}", "has no good clip", skippable=False)
                raise RawDataError([*self._raw.problems, problem])
        for note in self._raw.notes():
            log.warning("%s", note)
        self._kinds = frame_kinds(self._raw)
        self._depth_storage = depth_storage
        if depth_storage == "fast" and "depth" not in self._kinds:
            raise ValueError(f"depth_storage='fast', but the clips in {self.raw_dir} have no depth: leave it out")
        super().__init__(file_format="array_record", **kwargs)

    @staticmethod
    @abc.abstractmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked without decoding a frame."""

    @staticmethod
    def read_frames(clip: ClipSpec, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Returns a clip's encoded frames by modality; a subclass may crop or resize them."""
        return {modality: read_clip(frames, kinds[modality]) for modality, frames in clip.frames.items()}

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(self._raw.class_names)),
        }
        for modality, kind in self._kinds.items():
            encoding = "png" if kind.dtype == "uint16" else None
            shape = (None, None, kind.channels)
            image = tfds.features.Image(shape=shape, dtype=np.dtype(kind.dtype), encoding_format=encoding)
            features[modality] = tfds.features.Sequence(image)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                raw_dir=str(self.raw_dir.resolve()), depth_storage=self._depth_storage, **self._raw.metadata
            ),
        )

    def download_and_prepare(self) -> None:
        """Builds the data set, unless it is there; resumes where an earlier build ended.

        Until the data set is complete, finished shards lie in `incomplete.VERSION` beside its folder.
        """
        directory = Path(self.data_dir)
        with locked(directory.parent):
            if directory.exists():  # another process has built it in the meantime
                self.info.read_from_directory(directory)
                return
            folder = directory.with_name(f"incomplete.{directory.name}")
            self._download_and_prepare(folder)
            folder.rename(directory)
            shutil.rmtree(directory / REPORTS)
        self.info.update_data_dir(str(directory))

    def _download_and_prepare(self, folder: Path) -> None:
        """Writes what is missing in `folder`: the shards, then the index of clips and what TFDS needs beside them."""
        for problem in self._raw.problems:
            log.warning("left out: %s", problem)
        tasks = [task for split in self._raw.splits for task in self._tasks(split, folder)]
        reports = build_shards(self.name, folder, tasks, self._runner, self._skip_bad_clips)
        infos, stored = [], {}
        for split in self._raw.splits:
            shards = [report for task, report in zip(tasks, reports, strict=True) if task.split == split]
            stored[split] = [ClipInfo(*clip) for shard in shards for clip in shard.clips]
            if not stored[split]:
                raise bad_data(self.raw_dir, f"has no good clip in split {split}")
            lengths, size = [len(shard.clips) for shard in shards], sum(shard.record_bytes for shard in shards)
            template = self._get_filename_template(split_name=split)
            infos.append(SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
        for split, clips in stored.items():
            write_index(folder, split, clips)
        left_out = [*self._raw.problems, *(problem for report in reports for problem in report.problems)]
        self.info.set_splits(SplitDict(infos))
        self.info.metadata.update(left_out=list(map(str, left_out)))
        self.info.write_to_directory(str(folder))

    def _tasks(self, split: str, folder: Path) -> list[ShardTask]:
        template = self._get_filename_template(split_name=split)
        shards = cut(self._raw.splits[split], total=sum(map(len, self._raw.splits.values())))
        names = [
            Path(template.sharded_filepath(shard_index=i, num_shards=len(shards))).name for i in range(len(shards))
        ]
        made_by = self._kinds, self.read_frames, self.info.features, str(self.version), self._depth_storage == "fast"
        return [ShardTask(split, clips, *made_by, folder / name) for clips, name in zip(shards, names, strict=True)]


def frame_kinds(raw: RawClips) -> dict[str, FrameKind]:
    """Returns modality to the kind of its frames, that of the first clip that can be read."""
    problems: list[Problem] = []
    for clip in (clip for clips in raw.splits.values() for clip in clips):
        try:
            return {m: COLOUR if m == "rgb" else clip_kind(frames, m) for m, frames in clip.frames.items()}
        except RawDataError as error:
            problems += error.problems
    raise RawDataError(problems)
