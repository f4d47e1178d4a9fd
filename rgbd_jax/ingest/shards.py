"""Shards, the units of work of a build: each is read, verified and written whole.

A finished shard has a report beside it, which is written after it; a shard without one is not finished.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.ingest.clip_files import ClipSpec, FrameKind
from rgbd_jax.ingest.discovery import check_frame_counts
from rgbd_jax.ingest.problems import Problem, RawDataError, bad_clip, in_split

ReadFrames = Callable[[ClipSpec, Mapping[str, FrameKind]], Mapping[str, Sequence[bytes]]]

REPORTS = "reports"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard that is to be written; it can be pickled and sent to another process or machine.

    Attributes:
        split: the split that it belongs to.
        clips: its clips, in order.
        kinds: modality to the kind of its frames.
        read_frames: reads the encoded frames of a clip by modality; can be imported by its name.
        features: the features of a record.
        version: version of the data set.
        file: the shard.
    """

    split: str
    clips: tuple[ClipSpec, ...]
    kinds: Mapping[str, FrameKind]
    read_frames: ReadFrames
    features: tfds.features.FeaturesDict
    version: str
    file: Path

    @property
    def report_file(self) -> Path:
        """The shard's report."""
        return self.file.parent / REPORTS / f"{self.file.name}.json"


@dataclasses.dataclass
class ShardReport:
    """What a shard holds.

    Attributes:
        fingerprint: digest of the task and of its raw files, before they were read.
        record_bytes: size of its records.
        file_bytes: size of its file.
        names: name of each record.
        labels: label of each record.
        frames: modality to the number of frames of each record.
        problems: what is wrong with the clips that are left out.
    """

    fingerprint: str
    record_bytes: int = 0
    file_bytes: int = 0
    names: list[str] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    frames: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)


def read_example(clip: ClipSpec, kinds: Mapping[str, FrameKind], read_frames: ReadFrames) -> dict[str, Any]:
    """Reads and verifies a clip and returns its record: "name", "label" and the encoded frames of each modality.

    Raises:
        RawDataError: what is wrong with the clip.
    """
    try:
        frames = read_frames(clip, kinds)
    except OSError as error:
        raise bad_clip(clip.where, f"cannot be read: {error}") from error
    check_frame_counts(clip.where, {modality: len(encoded) for modality, encoded in frames.items()})
    return {"name": clip.name, "label": clip.label, **frames}


def write_shard(task: ShardTask) -> None:
    """Writes a shard of the good clips of a task, one clip in memory at a time, and its report.

    Raises:
        OSError: the shard cannot be written; the message names it.
    """
    report = ShardReport(fingerprint(task), frames={modality: [] for modality in task.kinds})
    serializer = ExampleSerializer(task.features.get_serialized_info())
    with atomic_write(task.file) as unfinished:
        with _os_errors(task.file):
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")  # every clip can be read alone
        for clip in task.clips:
            try:
                example = read_example(clip, task.kinds, task.read_frames)
            except RawDataError as error:
                report.problems += in_split(task.split, error.problems)
                continue
            encoded = serializer.get_tf_example(task.features.encode_example(example))
            record = encoded.SerializeToString(deterministic=True)  # the order of fields is random otherwise
            with _os_errors(task.file):
                writer.write(record)
            report.record_bytes += len(record)
            report.names.append(clip.name)
            report.labels.append(clip.label)
            for modality, counts in report.frames.items():
                counts.append(len(example[modality]))
        with _os_errors(task.file):
            writer.close()
        report.file_bytes = unfinished.stat().st_size
    with atomic_write(task.report_file) as unfinished:
        unfinished.write_text(json.dumps(dataclasses.asdict(report)))


def read_report(task: ShardTask) -> ShardReport | None:
    """Returns the report of a shard, None if the shard is not finished."""
    try:
        fields = json.loads(task.report_file.read_text())
    except FileNotFoundError:
        return None
    return ShardReport(**{**fields, "problems": [Problem(**problem) for problem in fields["problems"]]})


def check_shard(task: ShardTask) -> ShardReport:
    """Returns the report of a shard that is what its report says; of another one the report is removed.

    Raises:
        OSError: the shard is not finished, is missing, or has another size or number of records.
    """
    report = read_report(task)
    if report is None:
        raise OSError(errno.EIO, "the shard was lost; build again", str(task.file))
    try:
        size = task.file.stat().st_size if task.file.exists() else None
        if size != report.file_bytes:
            found = "none" if size is None else size
            what = f"expected a shard of {report.file_bytes} bytes, found {found}; build again"
            raise OSError(errno.EIO, what, str(task.file))
        with _os_errors(task.file):  # a shard that is cut off reads as an empty one
            reader = ArrayRecordReader(str(task.file))
            records = reader.num_records()
            reader.close()
        if records != len(report.names):
            what = f"expected {len(report.names)} records in the shard, found {records}; build again"
            raise OSError(errno.EIO, what, str(task.file))
    except OSError:
        task.report_file.unlink()
        raise
    return report


def is_finished(task: ShardTask, skip_bad_clips: bool) -> bool:
    """Returns whether an earlier build wrote the shard from the same raw files; if not, its report is removed."""
    try:
        report = check_shard(task)
    except OSError:
        return False
    if report.fingerprint == fingerprint(task) and (skip_bad_clips or not report.problems):
        return True
    task.report_file.unlink()
    return False


def fingerprint(task: ShardTask) -> str:
    """Returns a digest of all that a shard is made from: clips, raw files with sizes and times, reader, features."""
    reader = f"{task.read_frames.__module__}.{task.read_frames.__qualname__}"
    files = [_raw_files(frames.path) for clip in task.clips for frames in clip.frames.values()]
    description = [task.version, task.split, task.file.name, reader, task.features.to_json(), task.kinds, task.clips]
    return hashlib.sha256(repr([*description, files]).encode()).hexdigest()


def _raw_files(path: Path) -> list[tuple[str, int, int]]:
    """Returns names, sizes and times of the files of a clip as they are now."""
    try:
        with os.scandir(path if path.is_dir() else path.parent) as entries:
            files = [entry for entry in entries if path.is_dir() or entry.name == path.name]
            return sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files)
    except OSError:  # reading the clip will show what is wrong
        return []


@contextlib.contextmanager
def _os_errors(file: Path) -> Iterator[None]:
    """Turns the RuntimeError that ArrayRecord raises for whatever goes wrong into an OSError that names the file."""
    try:
        yield
    except RuntimeError as error:
        number = next((number for number in DISK_FULL if os.strerror(number) in str(error)), errno.EIO)
        raise OSError(number, f"the shard cannot be written, or read again: {error}", str(file)) from error
