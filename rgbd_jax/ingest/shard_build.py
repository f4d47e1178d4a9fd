"""A build of shards: cut, take up what an earlier run has finished, write the rest, and make sure that all is there."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import logging

from rgbd_jax.ingest.discovery import RawClip
from rgbd_jax.ingest.problems import Problem, RawDataError
from rgbd_jax.ingest.progress import Progress
from rgbd_jax.ingest.runners import Runner
from rgbd_jax.ingest.shard_plan import Plan, make_plan, read_plan, sample_clips, write_plan
from rgbd_jax.ingest.shards import REPORTS, ShardReport, ShardTask, check_shard, disk_is_full, is_finished, read_report

_THREADS = 16  # they wait for the file system


@dataclasses.dataclass(frozen=True)
class ShardBuild:
    """What is to be built, and where.

    Attributes:
        name: name of the data set.
        raw_dir: where the raw clips lie.
        folder: where the shards are written.
        splits: split to its clips.
        task: makes the task of a shard from its split, clips and file.
        file_name: gives the name of a shard's file from split, number of the shard and number of shards.
        skip_bad_clips: leave bad clips out instead of refusing to build.
        runner: where the shards are written.
    """

    name: str
    raw_dir: Path
    folder: Path
    splits: Mapping[str, Sequence[RawClip]]
    task: Callable[[str, tuple[RawClip, ...], Path], ShardTask]
    file_name: Callable[[str, int, int], str]
    skip_bad_clips: bool
    runner: Runner

    def run(self) -> dict[str, list[ShardReport]]:
        """Writes the shards that are missing.

        Returns:
            Split to what is known of its shards.

        Raises:
            RawDataError: clips are bad and bad clips are not skipped, or a split has no good clip.
            OSError: a shard cannot be written, or was lost; a full disk is told with what the build needs.
        """
        plan: Plan | None = None
        tasks: list[ShardTask] = []
        try:
            plan = self._plan()
            tasks = self._tasks(plan)
            self._write(tasks, plan)
            return self._checked(tasks)
        except BaseException as error:
            written = [task for task in tasks if (report := read_report(task)) and report.written]
            state = f"{len(written)} of {len(tasks)} shards are finished" + (
                f" and kept in {self.folder}: build again to go on from there, or delete that folder" if written else ""
            )
            if isinstance(error, OSError) and disk_is_full(error):
                needed = ""
                if plan:
                    left = plan.data_bytes - plan.clip_bytes * sum(len(task.clips) for task in written)
                    needed = f", about {_size(left)} needed ({_size(plan.data_bytes)} for the whole data set)"
                free = _size(shutil.disk_usage(self.folder).free)
                what = f"{error.strerror}; the disk is full: {free} free{needed}; {state}"
                raise OSError(error.errno, what, error.filename or str(self.folder)) from error
            logging.warning("%s was not built: %s", self.name, state)
            raise

    def _plan(self) -> Plan:
        """Returns how the clips are cut into shards: as before, if an earlier run has left some."""
        raw_dir = str(self.raw_dir.resolve())
        plan = read_plan(self.folder)
        if plan is None or plan.raw_dir != raw_dir:
            sample = self.task("", sample_clips(self.splits), self.folder / "sample")
            clips = sum(map(len, self.splits.values()))
            plan = make_plan(raw_dir, clips, dataclasses.replace(sample, skip_bad_clips=True))
            write_plan(self.folder, plan)
        return plan

    def _tasks(self, plan: Plan) -> list[ShardTask]:
        """Returns all shards, in the order of the raw data."""
        tasks = []
        for split, clips in self.splits.items():
            parts = plan.cut(clips)
            for number, part in enumerate(parts):
                tasks.append(self.task(split, part, self.folder / self.file_name(split, number, len(parts))))
        return tasks

    def _write(self, tasks: Sequence[ShardTask], plan: Plan) -> None:
        _remove_others(self.folder, tasks)
        with ThreadPoolExecutor(_THREADS) as threads:
            finished = list(threads.map(is_finished, tasks))
        to_do = [task for task, done in zip(tasks, finished, strict=True) if not done]
        logging.info("%s: %d shards, of which %d are to be written", self.name, len(tasks), len(to_do))
        total, left = (sum(len(task.clips) for task in each) for each in (tasks, to_do))
        free = shutil.disk_usage(self.folder).free
        if left * plan.clip_bytes > free:
            needed = _size(left * plan.clip_bytes)
            logging.warning("%s: about %s needed, only %s free", self.folder, needed, _size(free))
        with Progress(f"building {self.name}", total, total - left) as progress:
            self.runner.run(to_do, progress, functools.partial(_log_problems, self.skip_bad_clips))

    def _checked(self, tasks: Sequence[ShardTask]) -> dict[str, list[ShardReport]]:
        """Makes sure that all shards are there and whole: a runner may have lost some without a word."""
        reports: dict[str, list[ShardReport]] = {split: [] for split in self.splits}
        lost = []
        for task in tasks:
            report = read_report(task)
            if report is None:
                lost.append(task.file.name)
            else:
                reports[task.split].append(report)
        if lost:
            raise OSError(f"{len(lost)} of {len(tasks)} shards were lost, the first is {lost[0]}: build again")
        problems = problems_of(reports)
        if problems and not self.skip_bad_clips:
            raise RawDataError(problems)
        for task, report in zip(tasks, (report for split in reports.values() for report in split), strict=True):
            check_shard(task, report)
        for split, shards in reports.items():
            if not any(report.clips for report in shards):
                raise RawDataError([Problem(str(self.raw_dir), f"has no good clip in split {split}", one_clip=False)])
        return reports


def problems_of(reports: Mapping[str, Sequence[ShardReport]]) -> list[Problem]:
    """Returns what is wrong with the clips of shards, in the order of the raw data."""
    return [problem for shards in reports.values() for report in shards for problem in report.problems]


def _remove_others(folder: Path, tasks: Sequence[ShardTask]) -> None:
    """Removes shards of an earlier run that cut the data set in another way."""
    wanted = {path for task in tasks for path in (task.file, task.report_file)}
    for file in [*folder.glob("*.array_record-*"), *(folder / REPORTS).glob("*.array_record-*")]:
        if file not in wanted:
            file.unlink()


def _log_problems(skip_bad_clips: bool, task: ShardTask) -> None:
    report = read_report(task)
    for problem in report.problems if report else ():
        logging.warning("%s: %s", "left out" if skip_bad_clips else "bad clip", problem)


def _size(count: float) -> str:
    """Returns a number of bytes in the unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
