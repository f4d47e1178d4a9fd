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
    counts = {modality: list(map(int, counts)) for modality, counts in frames.items()}
    content = {"names": list(names), "labels": list(map(int, labels)), "frames": counts}
    with atomic_write(index_file(directory, split)) as unfinished:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_index(directory: Path, split: str) -> ClipIndex:
    """Reads the index of a base split; one that is missing or damaged is an error with the advice to build again."""
    file = index_file(directory, split)
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is missing, the index of clips; {rebuild_advice(directory)}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not an index of clips ({error}); {rebuild_advice(directory)}") from error


def _parse(content: Any) -> ClipIndex:
    if not isinstance(content, dict) or set(content) != {"names", "labels", "frames"}:
        raise ValueError("expected an object with names, labels and frames")
    names, labels, frames = content["names"], content["labels"], content["frames"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names: expected a list of strings")
    if not isinstance(frames, dict) or not set(frames) <= set(MODALITIES):
        raise ValueError(f"frames: expected an object with {' or '.join(MODALITIES)}")
    for field, numbers in {"labels": labels, **frames}.items():
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            raise ValueError(f"{field}: expected a list of whole numbers from 0 on")
        if len(numbers) != len(names):
            raise ValueError(f"{field}: expected {len(names)} entries, one for each name, found {len(numbers)}")
    counts = {modality: np.array(frames[modality], int) for modality in MODALITIES if modality in frames}
    return ClipIndex(tuple(names), np.array(labels, int), counts)
