"""Shards, the units of work of a build: each is read, verified and written whole, or not at all.

A shard is written under a temporary name, renamed when it is whole, and then described by a report beside it: a shard
without a report is not finished, whatever the file looks like.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from rgbd_jax.atomic_write import to_disk
from rgbd_jax.ingest.clip_files import FrameKind, Recording
from rgbd_jax.ingest.discovery import RawClip, check_frame_counts
from rgbd_jax.ingest.problems import Problem, RawDataError

Example = dict[str, Any]
ReadFrames = Callable[[RawClip, Mapping[str, FrameKind]], Mapping[str, Sequence[bytes]]]

REPORTS = "reports"
_TEMPORARY = ".writing-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard that is to be written; it can be pickled and handed to another process or machine.

    Attributes:
        split: the split that it belongs to.
        clips: its clips, in order.
        kinds: modality to the kind of its frames.
        read_frames: reads the encoded frames of a clip by modality; a function that can be imported by its name.
        features: the features of a record.
        version: version of the data set.
        file: the shard; its folder and the one of the reports in it are there already.
        skip_bad_clips: leave bad clips out instead of writing no shard.
    """

    split: str
    clips: tuple[RawClip, ...]
    kinds: Mapping[str, FrameKind]
    read_frames: ReadFrames
    features: tfds.features.FeaturesDict
    version: str
    file: Path
    skip_bad_clips: bool

    @property
    def report_file(self) -> Path:
        """Where the shard's report lies."""
        return self.file.parent / REPORTS / f"{self.file.name}.json"


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of a shard.

    Attributes:
        fingerprint: of the task and of its raw files, before they were read.
        written: whether the shard is there; it is not if a clip is bad and bad clips are not skipped.
        clips: number of its records.
        record_bytes: size of its records.
        file_bytes: size of its file.
        frame_counts: modality to the number of frames of each record.
        left_out: names of the bad clips.
        problems: what is wrong with them.
    """

    fingerprint: str
    written: bool
    clips: int
    record_bytes: int
    file_bytes: int
    frame_counts: Mapping[str, Sequence[int]]
    left_out: tuple[str, ...]
    problems: tuple[Problem, ...]


def read_example(clip: RawClip, kinds: Mapping[str, FrameKind], read_frames: ReadFrames) -> Example | Sequence[Problem]:
    """Reads and verifies a clip.

    Args:
        clip: the clip.
        kinds: modality to the kind of its frames.
        read_frames: reads the encoded frames by modality.

    Returns:
        The record: "name", "label" and the encoded frames of each modality; or what is wrong with the clip.
    """
    try:
        frames = read_frames(clip, kinds)
        check_frame_counts(clip.where, {modality: len(encoded) for modality, encoded in frames.items()})
    except RawDataError as error:
        return error.problems
    except OSError as error:
        return [Problem(clip.where, f"cannot be read: {error}")]
    return {"name": clip.name, "label": clip.label, **frames}


def write_shard(task: ShardTask, after_clip: Callable[[], None] = lambda: None) -> None:
    """Writes a shard and its report; where clips are bad and are not skipped, the report alone.

    Clip after clip is read and written, so that no more than one is held in memory.

    Args:
        task: the shard.
        after_clip: called after every clip, written or left out.

    Raises:
        OSError: the shard cannot be written; the message names it.
    """
    fingerprint = fingerprint_of(task)
    serializer = ExampleSerializer(task.features.get_serialized_info())
    written, record_bytes = 0, 0
    frame_counts: dict[str, list[int]] = {modality: [] for modality in task.kinds}
    left_out: list[str] = []
    problems: list[Problem] = []
    temporary = task.file.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{task.file.name}")
    try:
        with _naming(task.file):
            writer = ArrayRecordWriter(str(temporary), "group_size:1")  # every clip can be read alone
        for clip in task.clips:
            example = read_example(clip, task.kinds, task.read_frames)
            if not isinstance(example, dict):
                left_out.append(clip.name)
                problems += [dataclasses.replace(problem, split=task.split) for problem in example]
            elif task.skip_bad_clips or not problems:
                encoded = serializer.get_tf_example(task.features.encode_example(example))
                record = encoded.SerializeToString(deterministic=True)  # the order of fields is random otherwise
                with _naming(task.file):
                    writer.write(record)
                written += 1
                record_bytes += len(record)
                for modality, counts in frame_counts.items():
                    counts.append(len(example[modality]))
            after_clip()
        with _naming(task.file):
            writer.close()
            keep = task.skip_bad_clips or not problems
            if keep:
                _check_records(temporary, written)
                to_disk(temporary)
                temporary.replace(task.file)
            file_bytes = task.file.stat().st_size if keep else 0
            report = ShardReport(
                fingerprint, keep, written, record_bytes, file_bytes, frame_counts, tuple(left_out), tuple(problems)
            )
            _write_report(task.report_file, report)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint_of(task: ShardTask) -> str:
    """Returns a digest of what a shard is made from: clips, labels, raw files with sizes and times, reader, features.

    Two tasks of the same fingerprint write the same shard, if they write it.
    """
    description = {
        "version": task.version,
        "split": task.split,
        "file": task.file.name,
        "reader": f"{task.read_frames.__module__}.{task.read_frames.__qualname__}",
        "features": task.features.to_json(),
        "kinds": {modality: str(kind) for modality, kind in task.kinds.items()},
        "clips": [
            [clip.name, clip.label, {modality: _raw_files(r) for modality, r in clip.recordings.items()}]
            for clip in task.clips
        ],
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _raw_files(recording: Recording) -> list[Any]:
    """Describes which frames are used, and the files that hold them as they are now."""
    used = [str(recording.path), recording.first, recording.count, recording.pattern, recording.pattern_first]
    try:
        if recording.path.is_dir():
            with os.scandir(recording.path) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if not entry.name.startswith(".")]
        else:
            found = [(recording.path.name, recording.path.stat())]
    except OSError:  # reading the clip will say what is wrong
        return used
    return [*used, sorted((name, status.st_size, status.st_mtime_ns) for name, status in found)]


def read_report(task: ShardTask) -> ShardReport | None:
    """Returns what became of a shard, None if nothing is known."""
    try:
        fields = json.loads(task.report_file.read_text())
    except FileNotFoundError:
        return None
    problems = tuple(Problem(**problem) for problem in fields.pop("problems"))
    return ShardReport(**{**fields, "left_out": tuple(fields["left_out"]), "problems": problems})


def is_finished(task: ShardTask) -> bool:
    """Returns whether an earlier run has written the shard, and from the same raw files.

    A shard of which this is not true loses its report, so that it cannot be taken for one of this run.
    """
    report = read_report(task)
    if report is None:
        return False
    size = task.file.stat().st_size if task.file.exists() else -1
    usable = report.written and size == report.file_bytes and (task.skip_bad_clips or not report.problems)
    if usable and report.fingerprint == fingerprint_of(task):
        return True
    task.report_file.unlink()
    return False


def check_shard(task: ShardTask, report: ShardReport) -> None:
    """Makes sure that a written shard is what its report says; otherwise it loses its report.

    Raises:
        OSError: it is missing, or of another size, or has another number of records.
    """
    size = task.file.stat().st_size if task.file.exists() else None
    try:
        if size != report.file_bytes:
            what = f"expected a shard of {report.file_bytes} bytes, {'found none' if size is None else f'found {size}'}"
            raise OSError(errno.EIO, f"{what}; build again", str(task.file))
        with _naming(task.file):
            _check_records(task.file, report.clips)
    except OSError:
        task.report_file.unlink()
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed run was writing in the folder of the shards."""
    for file in folder.glob(f"{_TEMPORARY}*"):
        file.unlink()


def disk_is_full(error: BaseException) -> bool:
    """Returns whether an error of `write_shard` comes from a lack of space."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turns what the writer of records raises, which has no type of its own, into an OSError that names the file."""
    try:
        yield
    except RuntimeError as error:
        number = next((number for number in _DISK_FULL if os.strerror(number) in str(error)), errno.EIO)
        raise OSError(number, f"the shard cannot be written, or read again: {error}", str(file)) from error


def _check_records(file: Path, expected: int) -> None:
    """Makes sure that a shard has as many records as were written: a shard that is cut off reads as an empty one."""
    reader = ArrayRecordReader(str(file))
    found = reader.num_records()
    reader.close()
    if found != expected:
        raise OSError(errno.EIO, f"expected {expected} records in the shard, found {found}", str(file))


def _write_report(file: Path, report: ShardReport) -> None:
    temporary = file.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{file.name}")
    try:
        temporary.write_text(json.dumps(dataclasses.asdict(report)))
        to_disk(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
