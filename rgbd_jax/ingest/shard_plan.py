"""How a data set is cut into shards, which does not depend on how many workers write them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rgbd_jax.ingest.discovery import RawClip
from rgbd_jax.ingest.shards import REPORTS, ShardTask, read_report, write_shard

SHARD_BYTES = 128 * 2**20  # small enough to lose little when a build is killed
MOST_SHARDS = 512  # reading a data set at random keeps a file open for every shard, and 1024 is a common limit
_SAMPLE = 5  # clips that are read to learn how large they are
_UNKNOWN_CLIP_BYTES = 4 * 2**20  # where none of them can be read
_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a data set is cut into shards.

    Attributes:
        raw_dir: where the raw clips lie.
        clips: number of clips.
        clip_bytes: about how much of a file a prepared clip takes.
    """

    raw_dir: str
    clips: int
    clip_bytes: int

    @property
    def data_bytes(self) -> int:
        """About how large the prepared data set is."""
        return self.clips * self.clip_bytes

    @property
    def clips_per_shard(self) -> int:
        """The most clips that a shard has."""
        shard_bytes = max(SHARD_BYTES, self.data_bytes / MOST_SHARDS)
        return max(1, math.ceil(shard_bytes / self.clip_bytes))

    def cut(self, clips: Sequence[RawClip]) -> list[tuple[RawClip, ...]]:
        """Cuts the clips of a split into shards of about equal numbers, in order."""
        count = math.ceil(len(clips) / self.clips_per_shard)
        edges = [len(clips) * i // count for i in range(count + 1)]
        return [tuple(clips[start:stop]) for start, stop in itertools.pairwise(edges)]


def sample_clips(splits: Mapping[str, Sequence[RawClip]]) -> tuple[RawClip, ...]:
    """Returns some clips, spread evenly over a data set."""
    clips = [clip for split in splits.values() for clip in split]
    places = {(2 * i + 1) * len(clips) // (2 * _SAMPLE) for i in range(_SAMPLE)}
    return tuple(clips[place] for place in sorted(places))


def make_plan(raw_dir: str, clips: int, sample: ShardTask) -> Plan:
    """Makes a plan from a sample: how small records become in a file is seen when they are written.

    Args:
        raw_dir: where the raw clips lie.
        clips: number of clips of the data set.
        sample: a shard of sample clips that skips bad ones; it is written and removed.
    """
    write_shard(sample)
    report = read_report(sample)
    sample.file.unlink()
    sample.report_file.unlink()
    assert report is not None
    return Plan(raw_dir, clips, report.file_bytes // report.clips if report.clips else _UNKNOWN_CLIP_BYTES)


def read_plan(folder: Path) -> Plan | None:
    """Returns the plan of an earlier run that was building in a folder, None if there was none."""
    file = folder / REPORTS / _FILE
    return Plan(**json.loads(file.read_text())) if file.exists() else None


def write_plan(folder: Path, plan: Plan) -> None:
    """Keeps the plan for the next run: its shards go on fitting, even if some clips are mended in between."""
    file = folder / REPORTS / _FILE
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(plan)))
    temporary.replace(file)
