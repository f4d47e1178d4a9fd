"""Scores: the logits of every clip of a split in one file, enough to compute metrics or to fuse networks."""

import dataclasses
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.regular_files import check_regular

HEAD = "heads/"  # prefix of head names in the file
LOGITS = HEAD + "logits"
# Array of the file -> type of its entries and axes: n clips, k classes, c named ones. Other heads are like the first.
EXPECTED = {
    LOGITS: (np.float32, "nk"),
    "names": (np.str_, "n"),
    "labels": (np.signedinteger, "n"),
    "modality": (np.str_, ""),
    "dataset": (np.str_, ""),
    "split": (np.str_, ""),
    "step": (np.signedinteger, ""),
    "class_names": (np.str_, "c"),
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """The outputs of a network for every clip of a split."""

    names: tuple[str, ...]  # of the clips, unique
    labels: Int[np.ndarray, "n"]  # from 0 to k - 1
    heads: Mapping[str, Float[np.ndarray, "n k"]]  # float32 logits of each head; "logits" is the prediction
    modality: str  # `config.modality`
    dataset: str
    split: str  # as TFDS writes it ("validation", "train[:80%]")
    step: int  # of the checkpoint
    class_names: tuple[str, ...] = ()  # by label, as far as they are known

    def save(self, path: Path) -> None:
        """Writes the scores to a .npz file; makes the folder."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ("labels", "modality", "dataset", "split", "step")}
        arrays |= {name: np.array(getattr(self, name), np.str_) for name in ("names", "class_names")}  # also if empty
        arrays |= {HEAD + name: logits for name, logits in self.heads.items()}
        _check(path, arrays)
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Reads a file that `save` wrote; ValueError names what is wrong with another one."""
        size = check_regular(path)
        with path.open("rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    unpacked = sum(entry.file_size for entry in archive.infolist())
                if unpacked > size:
                    raise ValueError(f"it unpacks to {unpacked:,} bytes from {size:,}")
                file.seek(0)
                arrays = dict(np.load(file, allow_pickle=False))
            except (ValueError, OSError, MemoryError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} is not a complete .npz file of scores: {error}; evaluate again") from error
        _check(path, arrays)
        heads = {name.removeprefix(HEAD): array for name, array in arrays.items() if name.startswith(HEAD)}
        names, class_names = tuple(arrays["names"].tolist()), tuple(arrays["class_names"].tolist())
        of_split = {name: arrays[name].item() for name in ("modality", "dataset", "split", "step")}
        return cls(names, arrays["labels"], heads, **of_split, class_names=class_names)


def scores_file(workdir: Path, split: str) -> Path:
    """Returns the path of the scores of a split in a workdir."""
    return workdir / "scores" / f"{quote(split, safe='')}.npz"


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if problem := next(_problems(arrays), None):
        raise ValueError(f"{path}: invalid scores: {problem}; evaluate again")


def _problems(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yields what is wrong with the arrays of a file; each check relies on those before it."""
    if missing := [name for name in EXPECTED if name not in arrays]:
        yield f"there is no array {', '.join(missing)}"
    if unknown := [name for name in arrays if name not in EXPECTED and not name.startswith(HEAD)]:
        yield f"unknown array {', '.join(unknown)}"
    if not arrays[LOGITS].size:
        yield "there is no clip"
    lengths: dict[str, int] = {}
    for name, array in {LOGITS: arrays[LOGITS], **arrays}.items():
        kind, axes = EXPECTED.get(name, EXPECTED[LOGITS])
        if not np.issubdtype(array.dtype, kind) or array.ndim != len(axes):
            yield f"{name} is {array.dtype} of shape {array.shape}, expected {kind.__name__} with {len(axes)} axes"
        shape = tuple(lengths.setdefault(axis, length) for axis, length in zip(axes, array.shape, strict=True))
        if array.shape != shape:
            yield f"{name} has shape {array.shape}, expected {shape} as {LOGITS} has {arrays[LOGITS].shape}"
    classes = lengths["k"]
    if len(arrays["class_names"]) > classes:
        yield f"there are {len(arrays['class_names'])} names for {classes} classes"
    outside = np.flatnonzero((arrays["labels"] < 0) | (arrays["labels"] >= classes))
    if len(outside):
        name, label = arrays["names"][outside[0]], arrays["labels"][outside[0]]
        yield f"clip {name} has label {label}, expected 0 to {classes - 1} ({len(outside)} such clips)"
    if repeated := [name for name, count in Counter(arrays["names"].tolist()).items() if count > 1]:
        yield f"{len(repeated)} clips occur more than once, such as {repeated[0]}"
