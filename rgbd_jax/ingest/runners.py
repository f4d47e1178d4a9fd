"""Where the shards of a build are written: in processes on this machine, or by Apache Beam."""

import dataclasses
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from typing import Any, Protocol, TypeVar

import cv2

from rgbd_jax.ingest.shards import ShardTask, write_shard

Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL_SECONDS = 0.25


class Runner(Protocol):
    """Writes shards somewhere; what became of each is in its report."""

    def run(
        self, tasks: Sequence[ShardTask], on_clips: Callable[[int], None], on_shard: Callable[[ShardTask], None]
    ) -> None:
        """Writes shards.

        Args:
            tasks: the shards.
            on_clips: called now and then with the number of clips done since the last call.
            on_shard: called after a shard.

        Raises:
            OSError: a shard cannot be written.
        """


@dataclasses.dataclass(frozen=True)
class LocalRunner:
    """Writes shards in processes on this machine.

    Attributes:
        workers: number of processes; None for one a core.
    """

    workers: int | None = None

    def run(
        self, tasks: Sequence[ShardTask], on_clips: Callable[[int], None], on_shard: Callable[[ShardTask], None]
    ) -> None:
        """Writes shards."""
        for task, _ in run_jobs(write_shard, tasks, self.workers, on_clips):
            on_shard(task)


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """Writes shards with Apache Beam; all machines must see raw data and prepared data under the same paths.

    Attributes:
        options: Beam's pipeline options as on a command line, such as ("--runner=DirectRunner",).
    """

    options: tuple[str, ...]

    def run(
        self, tasks: Sequence[ShardTask], on_clips: Callable[[int], None], on_shard: Callable[[ShardTask], None]
    ) -> None:
        """Writes shards."""
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ValueError(
                f"Apache Beam cannot be imported ({error}): install it with `pip install -e '.[beam]'` in the checkout"
            ) from error
        with beam.Pipeline(options=PipelineOptions(list(self.options))) as pipeline:
            shards = pipeline | beam.Create(tasks, reshuffle=False) | beam.Reshuffle()
            shards | beam.Map(write_shard)
        for task in tasks:
            on_clips(len(task.clips))
            on_shard(task)


def run_jobs(
    function: Callable[[Job, Callable[[], None]], Result],
    jobs: Sequence[Job],
    workers: int | None,
    on_clips: Callable[[int], None],
) -> Iterator[tuple[Job, Result]]:
    """Runs jobs in processes on this machine; a single one, or a single worker, in this process.

    Args:
        function: does a job, and calls its second argument after every clip; can be imported by its name.
        jobs: the jobs.
        workers: number of processes; None for one a core.
        on_clips: called several times a second with the number of clips done since the last call.

    Yields:
        A job and its result, when it is done.

    Raises:
        BaseException: what a job raises; the others end after the clip that they are at.
    """
    workers = min(workers or available_cores(), len(jobs))
    if workers <= 1:
        for job in jobs:
            yield job, function(job, functools.partial(on_clips, 1))
        return
    context = multiprocessing.get_context("spawn")  # OpenCV and JAX have threads, which do not survive a fork
    counter, stop = context.Value("q", 0), context.Event()
    counted = 0

    def count() -> None:
        nonlocal counted
        now = counter.value
        on_clips(now - counted)
        counted = now

    pool = ProcessPoolExecutor(workers, context, _start_worker, (counter, stop))
    try:
        pending = {pool.submit(_run_in_worker, function, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            count()
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _StoppedError(Exception):
    """Ends a job whose result nobody waits for."""


_after_clip: Callable[[], None]  # of a worker


def _start_worker(counter: Any, stop: Event) -> None:
    import signal

    global _after_clip
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    cv2.setNumThreads(1)  # one process a core is enough
    _after_clip = functools.partial(_count_clip, counter, stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _count_clip(counter: Any, stop: Event) -> None:
    with counter.get_lock():
        counter.value += 1
    if stop.is_set():
        raise _StoppedError


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(function: Callable[[Any, Callable[[], None]], Any], job: Any) -> Any:
    return function(job, _after_clip)
