"""The index of a base split, written when the data set is built: names, labels and frame counts of its clips."""

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
    """What is known of the clips of a base split without reading them, in the order of its records."""

    names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    frames: Mapping[str, Int[np.ndarray, " n"]]  # modality -> number of frames of each clip


def index_file(directory: Path, split: str) -> Path:
    """Returns the path of the index of a base split in the folder of a prepared data set."""
    return directory / f"index_{split}.json"


def rebuild_advice(directory: Path) -> str:
    """Returns what to do about a prepared data set that cannot be used."""
    return f"remove {directory} and build it again with `python -m rgbd_jax data build {directory.parent.name}`"


def write_index(
    directory: Path, split: str, names: Sequence[str], labels: Sequence[int], frames: Mapping[str, Sequence[int]]
) -> None:
    """Writes the index of a base split; the arguments are the fields of `ClipIndex`, in the order of its records."""
    counts = {modality: [int(count) for count in counts] for modality, counts in frames.items()}
    content = {"names": list(names), "labels": [int(label) for label in labels], "frames": counts}
    with atomic_write(index_file(directory, split)) as unfinished:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_index(directory: Path, split: str) -> ClipIndex:
    """Reads the index of a base split; one that is missing or damaged is an error with the advice to build again."""
    file = index_file(directory, split)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        problem = _problem(content)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is missing, the index of clips; {rebuild_advice(directory)}") from error
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{file} is not an index of clips ({problem}); {rebuild_advice(directory)}")
    frames = {name: np.array(content["frames"][name], int) for name in MODALITIES if name in content["frames"]}
    return ClipIndex(tuple(content["names"]), np.array(content["labels"], int), frames)


def _problem(content: Any) -> str | None:
    if not isinstance(content, dict) or set(content) != {"names", "labels", "frames"}:
        return "expected an object with names, labels and frames"
    names, labels, frames = content["names"], content["labels"], content["frames"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "names: expected a list of strings"
    if not isinstance(frames, dict) or not set(frames) <= set(MODALITIES):
        return f"frames: expected an object with {' or '.join(MODALITIES)}"
    for field, numbers in {"labels": labels, **frames}.items():
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            return f"{field}: expected a list of whole numbers from 0 on"
        if len(numbers) != len(names):
            return f"{field}: expected {len(names)} entries, one for each name, found {len(numbers)}"
    return None
