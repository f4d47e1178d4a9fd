"""Shards, the units of work of a build: each is read, verified and written whole, several at a time.

A finished shard has a report beside it, which is written after it. The next build keeps finished shards.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tqdm import tqdm

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.data.frame_files import append_frame
from rgbd_jax.ingest.clip_files import ClipSpec, FrameKind
from rgbd_jax.ingest.discovery import THREADS, check_frame_counts
from rgbd_jax.ingest.problems import Problem, RawDataError, clip_problems

CLIPS_PER_SHARD = 16  # a build that is killed loses little
MAX_SHARDS = 512  # random access keeps a file open for every shard, and 1024 is a common limit
REPORTS = "reports"

ReadFrames = Callable[[ClipSpec, Mapping[str, FrameKind]], Mapping[str, Sequence[bytes]]]

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard that is to be written; it can be pickled and sent to another process or machine."""

    split: str
    clips: tuple[ClipSpec, ...]
    kinds: Mapping[str, FrameKind]  # by modality
    read_frames: ReadFrames  # can be imported by its name
    features: tfds.features.FeaturesDict
    version: str  # of the data set
    fast_depth: bool  # whether depth frames go to `depth_file`, and their places into the records
    file: Path

    @property
    def depth_file(self) -> Path:
        """The shard's depth frames, where they are stored for speed."""
        return self.file.with_name(f"{self.file.name}.depth")

    @property
    def files(self) -> list[Path]:
        """The files that hold clips."""
        return [self.file, self.depth_file] if self.fast_depth else [self.file]

    @property
    def report_file(self) -> Path:
        """The shard's report."""
        return self.file.parent / REPORTS / f"{self.file.name}.json"

    def fingerprint(self) -> str:
        """Returns a digest of what the shard is made from: clips, raw files with sizes and times, reader, features."""
        files = []
        for path in (frames.path for clip in self.clips for frames in clip.frames.values()):
            with contextlib.suppress(OSError):  # reading the clip will show what is wrong
                found = [(str(file), file.stat()) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
                files += [(name, status.st_size, status.st_mtime_ns) for name, status in found]
        reader = f"{self.read_frames.__module__}.{self.read_frames.__qualname__}"
        features = json.dumps(self.features.to_json(), sort_keys=True)  # the order of fields is random otherwise
        storage = reader, features, self.fast_depth
        made_of = [self.version, self.split, self.file.name, *storage, self.kinds, self.clips, files]
        return hashlib.sha256(repr(made_of).encode()).hexdigest()


@dataclasses.dataclass
class ShardReport:
    """What a shard holds."""

    fingerprint: str  # of the task and its raw files, before they were read
    record_bytes: int = 0
    depth_bytes: int = 0  # of the depth file
    clips: list[tuple[str, int, dict[str, int]]] = dataclasses.field(default_factory=list)  # name, label, frame counts
    problems: list[Problem] = dataclasses.field(default_factory=list)  # with the clips that are left out


Shards = Generator[ShardTask, None, None]
Runner = Callable[[Sequence[ShardTask]], Shards]
"""Writes shards somewhere and yields each when it is done; what it holds is in its report."""


# ---- one shard


def read_example(clip: ClipSpec, kinds: Mapping[str, FrameKind], read_frames: ReadFrames) -> dict[str, Any]:
    """Returns a clip's record: "name", "label" and the encoded frames of each modality; else raises RawDataError."""
    frames = read_frames(clip, kinds)
    check_frame_counts(clip.where, {modality: len(encoded) for modality, encoded in frames.items()})
    return {"name": clip.name, "label": clip.label, **frames}


def write_shard(task: ShardTask) -> None:
    """Writes a shard of the good clips of a task, one clip in memory at a time, and its report."""
    report = ShardReport(task.fingerprint())
    serializer = ExampleSerializer(task.features.get_serialized_info())
    try:
        with contextlib.ExitStack() as files:
            shard, *beside = [files.enter_context(atomic_write(file)) for file in task.files]
            depth = files.enter_context(beside[0].open("wb")) if beside else None
            writer = ArrayRecordWriter(str(shard), "group_size:1")  # every clip can be read alone
            for clip in task.clips:
                try:
                    example = read_example(clip, task.kinds, task.read_frames)
                except (RawDataError, OSError) as error:
                    problems = clip_problems(error, clip.where, task.split)
                    report.problems += problems
                    log.warning("bad clip: %s", "; ".join(map(str, problems)))
                    continue
                counts = {modality: len(example[modality]) for modality in task.kinds}
                if depth:
                    places = [append_frame(depth, task.depth_file.name, frame) for frame in example["depth"]]
                    example["depth"], report.depth_bytes = places, depth.tell()
                encoded = serializer.get_tf_example(task.features.encode_example(example))
                record = encoded.SerializeToString(deterministic=True)  # the order of fields is random otherwise
                writer.write(record)
                report.record_bytes += len(record)
                report.clips.append((clip.name, clip.label, counts))
            writer.close()
    except RuntimeError as error:  # ArrayRecord raises it for every failure
        raise OSError(errno.EIO, f"the shard cannot be written: {error}", str(task.file)) from error
    with atomic_write(task.report_file) as unfinished:
        unfinished.write_text(json.dumps(dataclasses.asdict(report)))


def finished_report(task: ShardTask) -> ShardReport | None:
    """Returns the report of a shard; None if the shard is not finished, or is not what its report states."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a file is missing, or was overwritten
        fields = json.loads(task.report_file.read_text())
        report = ShardReport(**{**fields, "problems": [Problem(**problem) for problem in fields["problems"]]})
        reader = ArrayRecordReader(str(task.file))
        records = reader.num_records()  # a shard that is cut off reads as an empty one
        reader.close()
        depth_bytes = task.depth_file.stat().st_size if task.fast_depth else 0
        if (records, depth_bytes) == (len(report.clips), report.depth_bytes):
            return report
    return None


# ---- all shards


def build_shards(
    name: str, folder: Path, tasks: Sequence[ShardTask], runner: Runner, skip_bad_clips: bool
) -> list[ShardReport]:
    """Writes the shards that are missing in `folder` and returns the reports of all, in order.

    After an error the log states how many shards are finished, which stay for the next build, and what space it needs.
    """
    folder.mkdir(exist_ok=True)
    try:
        _remove_others(folder, tasks)
        _write_missing(name, folder, tasks, runner, skip_bad_clips)
        reports = []
        for task in tasks:
            if (report := finished_report(task)) is None:  # a runner may lose some without an error
                raise OSError(errno.EIO, "the shard was lost or damaged; build again", str(task.file))
            reports.append(report)
        problems = [problem for report in reports for problem in report.problems]
        if problems and not skip_bad_clips:
            raise RawDataError(problems)
        return reports
    except BaseException:
        finished = [task for task in tasks if (r := finished_report(task)) and (skip_bad_clips or not r.problems)]
        state = f"{len(finished)} of {len(tasks)} shards are finished"
        if finished:
            state += f" and kept in {folder}: build again to resume, or delete that folder"
        log.warning("%s was not built: %s; disk: %s", name, state, _space(folder, tasks, finished)[0])
        _remove_others(folder, tasks)
        if not finished:
            shutil.rmtree(folder)
        raise


def _write_missing(name: str, folder: Path, tasks: Sequence[ShardTask], runner: Runner, skip_bad_clips: bool) -> None:
    def is_finished(task: ShardTask) -> bool:
        report = finished_report(task)
        if report is None or (report.problems and not skip_bad_clips):
            return False
        return report.fingerprint == task.fingerprint()  # of the same raw files

    with ThreadPoolExecutor(THREADS) as threads:
        to_do = [task for task, done in zip(tasks, threads.map(is_finished, tasks), strict=True) if not done]
    for task in to_do:
        task.report_file.unlink(missing_ok=True)
    log.info("%s: %d shards, of which %d are to be written", name, len(tasks), len(to_do))
    clips, missing = (sum(len(task.clips) for task in each) for each in (tasks, to_do))
    interval = 0.1 if sys.stderr.isatty() else 60  # a log file gets a line a minute
    progress = tqdm(desc=f"building {name}", total=clips, initial=clips - missing, unit="clip", mininterval=interval)
    with progress, contextlib.closing(runner(to_do)) as written:
        for number, task in enumerate(written):
            progress.update(len(task.clips))
            if number == 0:
                space, enough = _space(folder, to_do, [task])
                if not enough:
                    log.warning("%s: the disk is too small: %s", folder, space)


def _space(folder: Path, tasks: Sequence[ShardTask], finished: Sequence[ShardTask]) -> tuple[str, bool]:
    """Describes the space that is free and, by the size of finished shards, needed; returns whether it is enough."""
    free = shutil.disk_usage(folder).free
    size = sum(file.stat().st_size for task in finished for file in task.files if file.exists())
    done, clips = (sum(len(task.clips) for task in each) for each in (finished, tasks))
    if not done:
        return f"{free / 1e9:.3g} GB free", True
    needed = size * (clips - done) / done
    return f"{free / 1e9:.3g} GB free, about {needed / 1e9:.3g} GB needed", needed <= free


def _remove_others(folder: Path, tasks: Sequence[ShardTask]) -> None:
    """Removes what a killed build was writing, and shards of one that cut the data set in another way."""
    kept = {path for task in tasks for path in (*task.files, task.report_file)}
    for file in [*folder.glob("*"), *(folder / REPORTS).glob("*")]:
        if file not in kept and file.is_file():
            file.unlink()


def cut(clips: Sequence[ClipSpec], total: int) -> list[tuple[ClipSpec, ...]]:
    """Cuts the clips of a split, of `total` in the data set, into shards of about equal numbers, in order."""
    count = math.ceil(len(clips) / max(CLIPS_PER_SHARD, math.ceil(total / MAX_SHARDS)))
    return [tuple(clips[len(clips) * i // count : len(clips) * (i + 1) // count]) for i in range(count)]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other builds out of it; waits for one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process builds in %s; waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems
            log.warning("%s cannot be locked (%s): make sure that no other process builds there", folder, error)
        yield


# ---- who writes shards


def run_locally(tasks: Sequence[ShardTask], workers: int | None = None) -> Shards:
    """Writes shards in threads, one a core by default; decoding and encoding release Python's lock."""
    workers = workers or available_cores()
    pool = ThreadPoolExecutor(workers)
    try:
        written = map(write_shard, tasks) if workers == 1 else pool.map(write_shard, tasks)
        for task, _ in zip(tasks, written, strict=True):
            yield task
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for no more than the shards that are being written


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_on_beam(tasks: Sequence[ShardTask], options: Sequence[str]) -> Shards:
    """Writes shards with Apache Beam; all machines must see raw and prepared data under the same paths.

    `options` are Beam's, as on a command line: ("--runner=DirectRunner",).
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(f"Apache Beam cannot be imported ({error}): `pip install -e '.[beam]'` installs it") from error
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        distributed = pipeline | beam.Create(tasks, reshuffle=False) | beam.Reshuffle()
        distributed | beam.Map(write_shard)
    yield from tasks
