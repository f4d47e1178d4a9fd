"""What the TFDS builders of raw clips share: check everything, then read, verify and store clip after clip."""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from rgbd_jax.data.clip_files import COLOUR, FrameKind, clip_kind, read_clip
from rgbd_jax.data.problems import Problem, RawDataError
from rgbd_jax.data.raw import RawClip, RawClips, check_frame_counts

_THREADS = os.cpu_count() or 1  # OpenCV decodes without holding the interpreter's lock

Example = dict[str, Any]


class RawClipsBuilder(tfds.core.GeneratorBasedBuilder):
    """Builds a data set from raw clips; a subclass says how they are found.

    A record holds `name`, `label` and the encoded frames of each modality; records are in the order of the raw data.
    The frames of a modality are all of one kind, which the features state.

    Attributes:
        raw_dir: where the raw clips lie.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def __init__(self, *, raw_dir: str | os.PathLike, skip_bad_clips: bool = False, **kwargs: Any):
        """Finds the raw clips and checks everything but whether the frames can be decoded.

        Args:
            raw_dir: where the raw clips lie.
            skip_bad_clips: leave bad clips out, and list them in the log, instead of refusing to build.
            **kwargs: handed on to TFDS: `data_dir`, `file_format`.

        Raises:
            FileNotFoundError: there are no raw clips.
            RawDataError: something is wrong with a clip and bad clips are not skipped, or with all of the raw data.
        """
        self.raw_dir = Path(raw_dir)
        self._skip_bad_clips = skip_bad_clips
        self._raw = self.find_clips(self.raw_dir)
        if self._raw.problems and not skip_bad_clips:
            raise RawDataError(self._raw.problems)
        _check_splits(self._raw)
        self._kinds = {modality: _kind(self._raw, modality) for modality in self._raw.modalities}
        super().__init__(**kwargs)

    @staticmethod
    def read_frames(clip: RawClip, kinds: Mapping[str, FrameKind]) -> Mapping[str, Sequence[bytes]]:
        """Returns a clip's encoded frames by modality; a subclass may crop or resize them.

        Raises:
            RawDataError: a frame is missing, cannot be decoded or is of another kind.
        """
        return {modality: read_clip(recording, kinds[modality]) for modality, recording in clip.recordings.items()}

    @abc.abstractmethod
    def find_clips(self, raw_dir: Path) -> RawClips:
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

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Example]]]:
        del dl_manager  # nothing is downloaded
        for problem in self._raw.problems:
            logging.warning("left out: %s", problem)
        return {split: self._generate_examples(split) for split in self._raw.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Example]]:
        bad: list[Problem] = []
        written = 0
        for result in self._read_split(split):
            if not isinstance(result, dict):
                bad += result
                for problem in result:
                    logging.warning("%s: %s", "left out" if self._skip_bad_clips else "bad clip", problem)
            elif self._skip_bad_clips or not bad:
                yield written, result
                written += 1
        if bad and not self._skip_bad_clips:
            # Nothing will be kept; the splits that are still to come are read so that all problems are told at once.
            splits = list(self._raw.splits)
            for later in splits[splits.index(split) + 1 :]:
                bad += [
                    problem for result in self._read_split(later) if not isinstance(result, dict) for problem in result
                ]
            raise RawDataError(bad)
        if not written:
            raise RawDataError([Problem(str(self.raw_dir), f"has no good clip in split {split}", one_clip=False)])
        self.info.metadata["left_out"] += [str(problem) for problem in bad]

    def _read_split(self, split: str) -> Iterator[Example | Sequence[Problem]]:
        """Yields for every clip, in order, its example or what is wrong with it; clips are read ahead in threads."""
        clips = self._raw.splits[split]
        logging.info("%s: reading %d clips of split %s", self.name, len(clips), split)
        results = (
            grain.MapDataset.source(clips)
            .map(self._read)
            .to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS))
        )
        yield from tqdm(results, desc=f"{self.name} {split}", total=len(clips), unit="clip", disable=None)

    def _read(self, clip: RawClip) -> Example | Sequence[Problem]:
        try:
            frames = self.read_frames(clip, self._kinds)
            check_frame_counts(clip.where, {modality: len(encoded) for modality, encoded in frames.items()})
        except RawDataError as error:
            return error.problems
        except OSError as error:
            return [Problem(clip.where, f"cannot be read: {error}")]
        return {"name": clip.name, "label": clip.label, **frames}


def _check_splits(raw: RawClips) -> None:
    """Makes sure that every split has a clip; warns of clips in two splits and of classes that nothing trains."""
    names: dict[str, str] = {}
    for split, clips in raw.splits.items():
        if not clips:
            problem = Problem(f"split {split}", "has no good clip", one_clip=False)
            raise RawDataError([*raw.problems, problem])
        shared = [clip for clip in clips if clip.name in names]
        if shared:
            logging.warning(
                "%d clips of split %s are in split %s too, the first is %s",
                len(shared),
                split,
                names[shared[0].name],
                shared[0].where,
            )
        names.update((clip.name, split) for clip in clips)
    untrained = set(range(len(raw.class_names))) - {clip.label for clip in raw.splits.get("train", ())}
    if "train" in raw.splits and untrained:
        logging.warning("%d of %d classes have no training clip", len(untrained), len(raw.class_names))


def _kind(raw: RawClips, modality: str) -> FrameKind:
    """Returns the kind of the frames of a modality: that of the first clip that can be read."""
    if modality == "rgb":
        return COLOUR
    problems: list[Problem] = []
    for clip in (clip for clips in raw.splits.values() for clip in clips):
        try:
            return clip_kind(clip.recordings[modality], modality)
        except RawDataError as error:
            problems += error.problems
    raise RawDataError(problems)
