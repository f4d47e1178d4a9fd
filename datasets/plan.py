"""How a data set is cut into shards, which does not depend on how many workers write them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets.shards import REPORTS, Example
from rgbd_jax.data.problems import Problem
from rgbd_jax.data.raw import RawClip

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
        clip_bytes: about how large a prepared clip is.
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


def make_plan(
    raw_dir: str, splits: Mapping[str, Sequence[RawClip]], read: Callable[[RawClip], Example | Sequence[Problem]]
) -> Plan:
    """Makes a plan from a sample of the clips.

    Args:
        raw_dir: where the raw clips lie.
        splits: split to its clips.
        read: reads a clip, as `shards.read_example` does.
    """
    clips = [clip for split in splits.values() for clip in split]
    places = {(2 * i + 1) * len(clips) // (2 * _SAMPLE) for i in range(_SAMPLE)}
    examples = [read(clips[place]) for place in sorted(places)]
    sizes = [_bytes(example) for example in examples if isinstance(example, dict)]
    return Plan(raw_dir, len(clips), max(1, sum(sizes) // len(sizes)) if sizes else _UNKNOWN_CLIP_BYTES)


def _bytes(example: Example) -> int:
    return sum(len(frame) for frames in example.values() if isinstance(frames, list | tuple) for frame in frames)


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
