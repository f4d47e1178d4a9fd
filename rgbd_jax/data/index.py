"""The index of a prepared split: what is known of its clips without reading them. A build writes one per base split."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.modalities import MODALITIES


@dataclasses.dataclass(frozen=True)
class ClipIndex:
    """Facts about the clips of a split, in the order of its records.

    Attributes:
        names: name of each clip.
        labels: class of each clip, counted from 0.
        frames: modality -> number of frames of each clip.
    """

    names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    frames: Mapping[str, Int[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> "ClipIndex":
        """Returns the index of the clips at `rows`, in that order."""
        rows = np.asarray(rows, int)
        names = tuple(self.names[row] for row in rows)
        return ClipIndex(names, self.labels[rows], {name: counts[rows] for name, counts in self.frames.items()})


def concatenate(indices: Sequence[ClipIndex]) -> ClipIndex:
    """Returns the index of several parts, one after the other."""
    return ClipIndex(
        names=tuple(name for index in indices for name in index.names),
        labels=np.concatenate([index.labels for index in indices]),
        frames={name: np.concatenate([index.frames[name] for index in indices]) for name in indices[0].frames},
    )


def index_file(directory: Path, split: str) -> Path:
    """Returns where the index of a base split lies in the folder of a prepared data set."""
    return directory / f"index_{split}.json"


def write_index(
    directory: Path, split: str, names: Sequence[str], labels: Sequence[int], frames: Mapping[str, Sequence[int]]
) -> None:
    """Writes the index of a base split; the arguments are the fields of `ClipIndex`."""
    content = {
        "names": list(names),
        "labels": [int(label) for label in labels],
        "frames": {modality: [int(count) for count in counts] for modality, counts in frames.items()},
    }
    with atomic_write(index_file(directory, split)) as unfinished:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_index(directory: Path, split: str) -> ClipIndex:
    """Reads the index of a base split.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = index_file(directory, split)
    advice = (
        f"build the data set again: remove {directory}, then run `python -m rgbd_jax data build {directory.parent.name}`"
    )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}, the index of the prepared clips, is missing; {advice}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); {advice}") from error
    problem = _problem(content)
    if problem:
        raise ValueError(f"{file} is not an index of clips: {problem}; {advice}")
    counts = {name: np.array(content["frames"][name], np.int64) for name in MODALITIES if name in content["frames"]}
    return ClipIndex(tuple(content["names"]), np.array(content["labels"], np.int64), counts)


def _problem(content: Any) -> str | None:
    """Returns what is wrong with the content of an index."""
    if not isinstance(content, dict) or set(content) != {"names", "labels", "frames"}:
        return "expected an object with names, labels and frames"
    names, labels, frames = content["names"], content["labels"], content["frames"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "names is not a list of strings"
    if not isinstance(frames, dict) or not frames or not set(frames) <= set(MODALITIES):
        return f"frames is not an object with lists for {' or '.join(MODALITIES)}"
    for field, numbers in {"labels": labels, **{f"frames.{name}": counts for name, counts in frames.items()}}.items():
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            return f"{field} is not a list of whole numbers from 0 on"
        if len(numbers) != len(names):
            return f"{field} has {len(numbers)} entries for {len(names)} names"
    return None
