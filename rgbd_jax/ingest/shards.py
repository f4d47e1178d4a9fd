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
    """A shard that is to be written; it can be pickled and sent to another process or machine."""

    split: str
    clips: tuple[ClipSpec, ...]
    kinds: Mapping[str, FrameKind]  # by modality
    read_frames: ReadFrames  # can be imported by its name
    features: tfds.features.FeaturesDict
    version: str  # of the data set
    file: Path

    @property
    def report_file(self) -> Path:
        """The shard's report."""
        return self.file.parent / REPORTS / f"{self.file.name}.json"


@dataclasses.dataclass
class ShardReport:
    """What a shard holds."""

    fingerprint: str  # of the task and its raw files, before they were read
    record_bytes: int = 0
    file_bytes: int = 0
    names: list[str] = dataclasses.field(default_factory=list)  # one a record
    labels: list[int] = dataclasses.field(default_factory=list)
    frames: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # numbers of frames by modality
    problems: list[Problem] = dataclasses.field(default_factory=list)  # with the clips that are left out


def read_example(clip: ClipSpec, kinds: Mapping[str, FrameKind], read_frames: ReadFrames) -> dict[str, Any]:
    """Returns a clip's record: "name", "label" and the encoded frames of each modality; else raises RawDataError."""
    try:
        frames = read_frames(clip, kinds)
    except OSError as error:
        raise bad_clip(clip.where, f"cannot be read: {error}") from error
    check_frame_counts(clip.where, {modality: len(encoded) for modality, encoded in frames.items()})
    return {"name": clip.name, "label": clip.label, **frames}


def write_shard(task: ShardTask) -> None:
    """Writes a shard of the good clips of a task, one clip in memory at a time, and its report."""
    report = ShardReport(_fingerprint(task), frames={modality: [] for modality in task.kinds})
    serializer = ExampleSerializer(task.features.get_serialized_info())
    with atomic_write(task.file) as unfinished, _os_errors(task.file):
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")  # every clip can be read alone
        for clip in task.clips:
            try:
                example = read_example(clip, task.kinds, task.read_frames)
            except RawDataError as error:
                report.problems += in_split(task.split, error.problems)
                continue
            encoded = serializer.get_tf_example(task.features.encode_example(example))
            record = encoded.SerializeToString(deterministic=True)  # the order of fields is random otherwise
            writer.write(record)
            report.record_bytes += len(record)
            report.names.append(clip.name)
            report.labels.append(clip.label)
            for modality, counts in report.frames.items():
                counts.append(len(example[modality]))
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
    """Returns the report of a shard if the shard is what its report states.

    Raises:
        OSError: the shard is not finished, is missing, or has another size or number of records; its report is removed.
    """
    report = read_report(task)
    size = task.file.stat().st_size if task.file.exists() else None
    if report is None:
        what = "the shard was lost"
    elif size != report.file_bytes:
        what = f"expected a shard of {report.file_bytes} bytes, found {size or 'none'}"
    else:
        with contextlib.suppress(RuntimeError):  # it was overwritten
            reader = ArrayRecordReader(str(task.file))
            records = reader.num_records()  # a shard that is cut off reads as an empty one
            reader.close()
            if records == len(report.names):
                return report
        what = f"expected {len(report.names)} records in the shard, which cannot be read"
    task.report_file.unlink(missing_ok=True)
    raise OSError(errno.EIO, f"{what}; build again", str(task.file))


def is_finished(task: ShardTask, skip_bad_clips: bool) -> bool:
    """Returns whether an earlier build wrote the shard from the same raw files; if not, its report is removed."""
    with contextlib.suppress(OSError):
        report = check_shard(task)
        if report.fingerprint == _fingerprint(task) and (skip_bad_clips or not report.problems):
            return True
        task.report_file.unlink()
    return False


def _fingerprint(task: ShardTask) -> str:
    """Returns a digest of all that a shard is made from: clips, raw files with sizes and times, reader, features."""
    files = []
    for path in (frames.path for clip in task.clips for frames in clip.frames.values()):
        with contextlib.suppress(OSError):  # reading the clip will show what is wrong
            found = [(str(file), file.stat()) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
            files += [(name, status.st_size, status.st_mtime_ns) for name, status in found]
    reader = f"{task.read_frames.__module__}.{task.read_frames.__qualname__}"
    features = json.dumps(task.features.to_json(), sort_keys=True)  # the order of fields is random otherwise
    made_of = [task.version, task.split, task.file.name, reader, features, task.kinds, task.clips, files]
    return hashlib.sha256(repr(made_of).encode()).hexdigest()


@contextlib.contextmanager
def _os_errors(file: Path) -> Iterator[None]:
    """Turns the RuntimeError that ArrayRecord raises for whatever goes wrong into an OSError that names the file."""
    try:
        yield
    except RuntimeError as error:
        number = next((number for number in DISK_FULL if os.strerror(number) in str(error)), errno.EIO)
        raise OSError(number, f"the shard cannot be written: {error}", str(file)) from error
