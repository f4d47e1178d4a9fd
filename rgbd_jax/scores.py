"""What a network says of every clip of a split, in one file: enough to measure it, or to fuse it with others."""

import dataclasses
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int

from rgbd_jax.atomic_write import atomic_write

HEAD = "heads/"  # head names begin so in the file


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a network says of every clip of a split.

    Attributes:
        names: names of the clips, each once.
        labels: their true classes, from 0 to k - 1.
        heads: name of a head -> its logits, float32; "logits" is the one that decides.
        modality: the config's modality: "rgb", "depth" or "fusion".
        dataset: name of the data set.
        split: the split, as TFDS writes it ("validation", "train[:80%]").
        step: step of the checkpoint.
        class_names: the classes, by label, as far as they are known.
    """

    names: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    heads: Mapping[str, Float[np.ndarray, "n k"]]
    modality: str
    dataset: str
    split: str
    step: int
    class_names: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes the scores to a .npz file, whole or not at all; makes the folder.

        Raises:
            ValueError: a field has a wrong type or shape (see `load`).
        """
        arrays = {
            "names": np.array(self.names, np.str_),
            "labels": self.labels,
            "modality": np.array(self.modality),
            "dataset": np.array(self.dataset),
            "split": np.array(self.split),
            "step": np.array(self.step),
            "class_names": np.array(self.class_names, np.str_),
            **{HEAD + name: logits for name, logits in self.heads.items()},
        }
        _check(path, arrays)
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no .npz file, lacks an array, or one has a wrong type or shape; labels lie outside
                the classes, or a clip is there twice. Names the file.
        """
        with path.open("rb") as file:
            try:
                loaded = np.load(file, allow_pickle=False)
                if not isinstance(loaded, np.lib.npyio.NpzFile):
                    raise ValueError("it holds a single array")
                arrays = {name: loaded[name] for name in loaded.files}
            except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} is not a whole .npz file of scores: {error}; evaluate again") from error
        _check(path, arrays)
        return cls(
            names=tuple(arrays["names"].tolist()),
            labels=arrays["labels"],
            heads={name.removeprefix(HEAD): array for name, array in arrays.items() if name.startswith(HEAD)},
            modality=arrays["modality"].item(),
            dataset=arrays["dataset"].item(),
            split=arrays["split"].item(),
            step=arrays["step"].item(),
            class_names=tuple(arrays["class_names"].tolist()),
        )


def scores_file(workdir: Path, split: str) -> Path:
    """Returns where the scores of a split lie in a workdir; every split has a file name of its own."""
    return workdir / "scores" / f"{quote(split, safe='')}.npz"


# Array -> kind of its type (NumPy's letter), its number of axes, and both in words.
EXPECTED = {
    "names": ("U", 1, "a list of texts"),
    "labels": ("i", 1, "a list of whole numbers"),
    "modality": ("U", 0, "a text"),
    "dataset": ("U", 0, "a text"),
    "split": ("U", 0, "a text"),
    "step": ("i", 0, "a whole number"),
    "class_names": ("U", 1, "a list of texts"),
    HEAD + "logits": ("f", 2, "a table of numbers"),
}


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    fault = _fault(arrays)
    if fault:
        raise ValueError(f"{path}: these are no usable scores: {fault}; evaluate again")


def _fault(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Says what is wrong with the arrays of a file, None if nothing is."""
    missing = [name for name in EXPECTED if name not in arrays]
    if missing:
        return f"there is no array {', '.join(missing)}"
    unknown = [name for name in arrays if name not in EXPECTED and not name.startswith(HEAD)]
    if unknown:
        return f"nothing is known of an array {', '.join(unknown)}"
    for name, array in arrays.items():
        kind, axes, words = EXPECTED.get(name, EXPECTED[HEAD + "logits"])
        if array.dtype.kind != kind or array.ndim != axes or (name.startswith(HEAD) and array.dtype != np.float32):
            exactly = " (float32)" if name.startswith(HEAD) else ""
            return f"{name} is {array.dtype} of shape {array.shape}, expected {words}{exactly}"
    clips, classes = arrays[HEAD + "logits"].shape
    if not clips:
        return "they are of no clip"
    for name in ("names", "labels"):
        if len(arrays[name]) != clips:
            return f"{name} has {len(arrays[name])} entries, expected {clips}, one for each row of {HEAD}logits"
    for name, array in arrays.items():
        if name.startswith(HEAD) and array.shape != (clips, classes):
            return f"{name} has shape {array.shape}, expected {(clips, classes)} as {HEAD}logits"
    if len(arrays["class_names"]) > classes:
        return f"there are {len(arrays['class_names'])} names for {classes} classes"
    outside = np.flatnonzero((arrays["labels"] < 0) | (arrays["labels"] >= classes))
    if len(outside):
        name, label = arrays["names"][outside[0]], arrays["labels"][outside[0]]
        return f"clip {name} has label {label}, expected 0 to {classes - 1} ({len(outside)} such clips)"
    twice = [name for name, count in Counter(arrays["names"].tolist()).items() if count > 1]
    if twice:
        return f"{len(twice)} clips are there more than once, such as {twice[0]}"
    return None
