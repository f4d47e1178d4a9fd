"""What the TFDS builders of raw clips share: check everything, then read, verify and store clips shard by shard."""

import abc
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from rgbd_jax.ingest.clip_files import COLOUR, FrameKind, clip_kind, read_clip
from rgbd_jax.ingest.discovery import RawClip, RawClips
from rgbd_jax.ingest.incomplete import incomplete_folder
from rgbd_jax.ingest.problems import Problem, RawDataError
from rgbd_jax.ingest.runners import LocalRunner, Runner
from rgbd_jax.ingest.shard_build import ShardBuild, problems_of
from rgbd_jax.ingest.shards import REPORTS, ShardTask

_FILE_FORMAT = "array_record"


class RawClipsBuilder(tfds.core.dataset_builder.FileReaderBuilder):
    """Builds a data set from raw clips; a subclass says how they are found.

    A record holds `name`, `label` and the encoded frames of each modality; records are in the order of the raw data.
    The frames of a modality are all of one kind, which the features state.

    Attributes:
        raw_dir: where the raw clips lie.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def __init__(
        self,
        *,
        raw_dir: str | os.PathLike,
        skip_bad_clips: bool = False,
        runner: Runner | None = None,
        file_format: str = _FILE_FORMAT,
        **kwargs: Any,
    ):
        """Finds the raw clips and checks everything but whether the frames can be decoded.

        Args:
            raw_dir: where the raw clips lie.
            skip_bad_clips: leave bad clips out, and list them in the log, instead of refusing to build.
            runner: where the shards are written; None for all cores of this machine.
            file_format: "array_record".
            **kwargs: handed on to TFDS: `data_dir`.

        Raises:
            FileNotFoundError: there are no raw clips.
            RawDataError: something is wrong with a clip and bad clips are not skipped, or with all of the raw data.
            ValueError: `file_format` is another one.
        """
        if file_format != _FILE_FORMAT:
            raise ValueError(f"file_format is {file_format!r}; clips are kept as {_FILE_FORMAT!r} alone")
        self.raw_dir = Path(raw_dir)
        self._skip_bad_clips = skip_bad_clips
        self._raw = self.find_clips(self.raw_dir)
        if self._raw.problems and not skip_bad_clips:
            raise RawDataError(self._raw.problems)
        _check_splits(self._raw)
        self._kinds = frame_kinds(self._raw)
        self._runner = runner or LocalRunner()
        super().__init__(file_format=file_format, **kwargs)

    @staticmethod
    def read_frames(clip: RawClip, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Returns a clip's encoded frames by modality; a subclass may crop or resize them.

        It is called in other processes, by its name.

        Raises:
            RawDataError: a frame is missing, cannot be decoded or is of another kind.
        """
        return {modality: read_clip(recording, kinds[modality]) for modality, recording in clip.recordings.items()}

    @staticmethod
    @abc.abstractmethod
    def find_clips(raw_dir: Path) -> RawClips:
        """Returns the clips of the data set, checked."""

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(self._raw.class_names)),
        }
        for modality, kind in self._kinds.items():
            image = tfds.features.Image(
                shape=(None, None, kind.channels),
                dtype=np.dtype(kind.dtype),
                encoding_format="png" if kind.dtype == "uint16" else None,
            )
            features[modality] = tfds.features.Sequence(image)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                raw_dir=str(self.raw_dir.resolve()),
                left_out=[str(problem) for problem in self._raw.problems],
                **self._raw.metadata,
            ),
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Builds the data set, unless it is there; goes on where an earlier run was ended.

        The data set gets its name when it is complete. Until then, and after an error, finished shards lie in the
        folder `incomplete.VERSION` beside it.

        Args:
            **options: for TFDS alone: `download_dir`, which does not matter as nothing is downloaded, `file_format`.

        Raises:
            RawDataError: clips are bad and bad clips are not skipped, or a split has no good clip.
            OSError: a shard cannot be written, or was lost; a full disk is told with what the build needs.
            TypeError: another option is given.
            ValueError: `file_format` is not "array_record".
        """
        file_format = options.pop("file_format", _FILE_FORMAT)
        if file_format != _FILE_FORMAT:
            raise ValueError(f"file_format is {file_format!r}; clips are kept as {_FILE_FORMAT!r} alone")
        options.pop("download_dir", None)
        if options:
            raise TypeError(f"download_and_prepare() has no use for {', '.join(options)} where raw clips are prepared")
        directory = Path(self.data_dir)
        with incomplete_folder(directory) as folder:
            if directory.exists():  # another process has built it meanwhile
                self.info.read_from_directory(directory)
                return
            self._download_and_prepare(folder)
            folder.rename(directory)
        shutil.rmtree(directory / REPORTS)
        self.info.update_data_dir(str(directory))

    def _download_and_prepare(self, folder: Path) -> None:
        """Writes the shards that are missing in `folder`, then the metadata."""
        for problem in self._raw.problems:
            logging.warning("left out: %s", problem)
        build = ShardBuild(
            name=self.name,
            raw_dir=self.raw_dir,
            folder=folder,
            splits=self._raw.splits,
            task=self._task,
            file_name=self._file_name,
            skip_bad_clips=self._skip_bad_clips,
            runner=self._runner,
        )
        reports = build.run()
        infos = [
            SplitInfo(
                name=split,
                shard_lengths=[report.clips for report in shards],
                num_bytes=sum(report.record_bytes for report in shards),
                filename_template=self._get_filename_template(split_name=split),
            )
            for split, shards in reports.items()
        ]
        self.info.set_splits(SplitDict(infos))
        self.info.metadata["left_out"] = [str(problem) for problem in (*self._raw.problems, *problems_of(reports))]
        self.info.metadata["unreadable_clips"] = {
            split: [name for report in shards for name in report.left_out] for split, shards in reports.items()
        }
        self.info.write_to_directory(str(folder))

    def _file_name(self, split: str, number: int, count: int) -> str:
        template = self._get_filename_template(split_name=split)
        return Path(template.sharded_filepath(shard_index=number, num_shards=count)).name

    def _task(self, split: str, clips: tuple[RawClip, ...], file: Path) -> ShardTask:
        return ShardTask(
            split=split,
            clips=clips,
            kinds=self._kinds,
            read_frames=self.read_frames,
            features=self.info.features,
            version=str(self.version),
            file=file,
            skip_bad_clips=self._skip_bad_clips,
        )


def _check_splits(raw: RawClips) -> None:
    """Makes sure that every split has a clip; warns of what else is odd."""
    for split, clips in raw.splits.items():
        if not clips:
            problem = Problem(f"split {split}", "has no good clip", one_clip=False)
            raise RawDataError([*raw.problems, problem])
    for note in notes_on_splits(raw):
        logging.warning("%s", note)


def notes_on_splits(raw: RawClips) -> list[str]:
    """Says which clips are in two splits, and how many classes nothing trains."""
    notes = []
    names: dict[str, str] = {}
    for split, clips in raw.splits.items():
        shared = [clip for clip in clips if clip.name in names]
        if shared:
            first = f"{names[shared[0].name]} too, the first is {shared[0].where}"
            notes.append(f"{len(shared)} clips of split {split} are in split {first}")
        names.update((clip.name, split) for clip in clips)
    untrained = set(range(len(raw.class_names))) - {clip.label for clip in raw.splits.get("train", ())}
    if "train" in raw.splits and untrained:
        notes.append(f"{len(untrained)} of {len(raw.class_names)} classes have no training clip")
    return notes


def frame_kinds(raw: RawClips) -> dict[str, FrameKind]:
    """Returns modality to the kind of its frames, that of the first clip that can be read.

    Raises:
        RawDataError: no clip of a modality can be read.
    """
    return {modality: _kind(raw, modality) for modality in raw.modalities}


def _kind(raw: RawClips, modality: str) -> FrameKind:
    if modality == "rgb":
        return COLOUR
    problems: list[Problem] = []
    for clip in (clip for clips in raw.splits.values() for clip in clips):
        try:
            return clip_kind(clip.recordings[modality], modality)
        except RawDataError as error:
            problems += error.problems
    raise RawDataError(problems)
