"""Which class is taken for which: the confusion matrix, and what follows from it class by class."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """How well each class is recognised.

    Attributes:
        clips: clips that are of the class.
        predicted: clips that were taken for the class.
        right: clips of the class that were recognised.
        accuracy: share of the clips of the class that were recognised (recall); not a number without clips.
        precision: share of the clips taken for the class that are of it; not a number where none was.
    """

    clips: Int[np.ndarray, "k"]
    predicted: Int[np.ndarray, "k"]
    right: Int[np.ndarray, "k"]
    accuracy: Float[np.ndarray, "k"]
    precision: Float[np.ndarray, "k"]


@dataclasses.dataclass(frozen=True)
class ConfusedPair:
    """One class taken for another.

    Attributes:
        true: the class of the clips.
        predicted: what they were taken for.
        clips: how many.
        share: of the clips of the class.
        back: clips of the other class that were taken for this one.
    """

    true: int
    predicted: int
    clips: int
    share: float
    back: int


def confusion(predicted: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"], classes: int) -> Int[np.ndarray, "k k"]:
    """Returns the number of clips by true (row) and predicted class (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_figures(counts: Int[np.ndarray, "k k"]) -> ClassFigures:
    """Returns how well each class is recognised, from a confusion matrix."""
    clips, predicted, right = counts.sum(1), counts.sum(0), np.diag(counts)
    with np.errstate(invalid="ignore"):  # 0 / 0: a class without clips has no accuracy
        return ClassFigures(clips, predicted, right, right / clips, right / predicted)


def orders(counts: Int[np.ndarray, "k k"]) -> dict[str, list[int]]:
    """Returns orders of the classes for a confusion matrix, by name; ties are in class order.

    "class" is the order of the labels, "error" begins with the class that is recognised least (classes without clips
    come last), "clips" with the one that has most clips.
    """
    figures = class_figures(counts)
    return {
        "class": list(range(len(counts))),
        "error": np.argsort(np.nan_to_num(figures.accuracy, nan=2.0), kind="stable").tolist(),
        "clips": np.argsort(-figures.clips, kind="stable").tolist(),
    }


def most_confused(counts: Int[np.ndarray, "k k"], most: int) -> list[ConfusedPair]:
    """Returns up to `most` pairs of different classes, those with most clips first; equals by share, then by label."""
    errors = counts - np.diag(np.diag(counts))
    clips = counts.sum(1)
    true, predicted = np.nonzero(errors)
    found = errors[true, predicted]
    share = found / clips[true]
    order = np.lexsort((predicted, true, -share, -found))[:most]
    return [
        ConfusedPair(
            int(true[i]), int(predicted[i]), int(found[i]), float(share[i]), int(errors[predicted[i], true[i]])
        )
        for i in order
    ]
