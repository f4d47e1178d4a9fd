"""A build of shards: what an earlier build has finished is kept, the rest is written by several processes."""

import contextlib
import fcntl
import functools
import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
from tqdm import tqdm

from rgbd_jax.ingest import shards
from rgbd_jax.ingest.clip_files import ClipSpec
from rgbd_jax.ingest.discovery import THREADS
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.ingest.shards import ShardReport, ShardTask

CLIPS_PER_SHARD = 16  # a build that is killed loses little
MAX_SHARDS = 512  # random access keeps a file open for every shard, and 1024 is a common limit

Shards = Generator[ShardTask, None, None]
Runner = Callable[[Sequence[ShardTask]], Shards]
"""Writes shards somewhere and yields each when it is done; what it holds is in its report."""

log = logging.getLogger("rgbd_jax")


def run_locally(tasks: Sequence[ShardTask], workers: int | None = None) -> Shards:
    """Writes shards in processes on this machine, one a core by default; one worker is this process."""
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        for task in tasks:
            shards.write_shard(task)
            yield task
        return
    context = multiprocessing.get_context("spawn")  # OpenCV and JAX have threads, which do not survive a fork
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        futures = {pool.submit(shards.write_shard, task): task for task in tasks}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise OSError("a worker process was killed, perhaps out of memory: try again with fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    cv2.setNumThreads(1)  # one process a core is enough
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker whose parent was killed would wait for work for ever
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


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
        distributed | beam.Map(shards.write_shard)
    yield from tasks


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
            if multiprocessing.current_process().name != "MainProcess":  # its parent holds the lock, and waits for it
                raise RuntimeError(
                    "a worker process that helps to build a data set imports your script again, and reached the build "
                    'in it: put what the script does under `if __name__ == "__main__":`'
                ) from None
            log.info("another process builds in %s; waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems
            log.warning("%s cannot be locked (%s): make sure that no other process builds there", folder, error)
        yield


def build_shards(
    name: str, folder: Path, tasks: Sequence[ShardTask], runner: Runner, skip_bad_clips: bool
) -> list[ShardReport]:
    """Writes the shards that are missing in `folder` and returns the reports of all, in order.

    Raises:
        RawDataError: clips are bad and bad clips are not skipped; finished shards stay for the next build.
        OSError: a shard cannot be written, or was lost; of a full disk the message states what the build needs.
    """
    folder.mkdir(exist_ok=True)
    try:
        _remove_others(folder, tasks)
        _write(name, folder, tasks, runner, skip_bad_clips)
        reports = [shards.check_shard(task) for task in tasks]  # a runner may have lost some without an error
        problems = [problem for report in reports for problem in report.problems]
        if problems and not skip_bad_clips:
            raise RawDataError(problems)
        return reports
    except BaseException as error:
        finished = [r for task in tasks if (r := shards.read_report(task)) and (skip_bad_clips or not r.problems)]
        state = f"{len(finished)} of {len(tasks)} shards are finished"
        if finished:
            state += f" and kept in {folder}: build again to resume, or delete that folder"
        free, needed = _space(folder, tasks, finished)
        _remove_others(folder, tasks)
        if not finished:
            shutil.rmtree(folder)
        cause = error.__cause__ if isinstance(error, OSError) and error.errno is None else error
        if isinstance(cause, OSError) and cause.errno in shards.DISK_FULL:
            space = f"{_gb(free)} free" + (f", about {_gb(needed)} needed" if needed else "")
            what = f"{os.strerror(cause.errno)}; the disk is full: {space}; {state}"
            raise OSError(cause.errno, what, cause.filename or str(folder)) from error
        log.warning("%s was not built: %s", name, state)
        raise


def _write(name: str, folder: Path, tasks: Sequence[ShardTask], runner: Runner, skip_bad_clips: bool) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        finished = list(threads.map(functools.partial(shards.is_finished, skip_bad_clips=skip_bad_clips), tasks))
    to_do = [task for task, done in zip(tasks, finished, strict=True) if not done]
    log.info("%s: %d shards, of which %d are to be written", name, len(tasks), len(to_do))
    clips = sum(len(task.clips) for task in tasks)
    progress = tqdm(
        desc=f"building {name}",
        total=clips,
        initial=clips - sum(len(task.clips) for task in to_do),
        unit="clip",
        mininterval=0.1 if sys.stderr.isatty() else 60,  # a log file gets a line a minute
    )
    checked_space = False
    with progress, contextlib.closing(runner(to_do)) as written:
        for task in written:
            progress.update(len(task.clips))
            report = shards.read_report(task)
            if report is None:  # it was lost, which is noticed at the end
                continue
            for problem in report.problems:
                log.warning("%s: %s", "left out" if skip_bad_clips else "bad clip", problem)
            if not checked_space:
                free, needed = _space(folder, to_do, [report])
                if needed > free:
                    log.warning("%s: the disk is too small: %s free, about %s needed", folder, _gb(free), _gb(needed))
                checked_space = True


def _space(folder: Path, tasks: Sequence[ShardTask], reports: Sequence[ShardReport]) -> tuple[float, float]:
    """Returns the bytes that are free and, by the size of finished clips, those that the others need (0: unknown)."""
    done = sum(len(report.names) for report in reports)
    left = sum(len(task.clips) for task in tasks) - done
    file_bytes = sum(report.file_bytes for report in reports)
    return shutil.disk_usage(folder).free, left * file_bytes / done if done else 0


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def _remove_others(folder: Path, tasks: Sequence[ShardTask]) -> None:
    """Removes what a killed build was writing, and shards of one that cut the data set in another way."""
    kept = {path for task in tasks for path in (task.file, task.report_file)}
    for file in [*folder.glob("*"), *(folder / shards.REPORTS).glob("*")]:
        if file not in kept and file.is_file():
            file.unlink()
