"""How sure a network is of its answers, and which of them are worth a look."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

BINS = 10  # of the confidence, from 0 to 1


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the network answers for every clip.

    Attributes:
        labels: true classes.
        predicted: the classes that it decides for.
        probabilities: of every class.
    """

    labels: Int[np.ndarray, "n"]
    predicted: Int[np.ndarray, "n"]
    probabilities: Float[np.ndarray, "n k"]

    @property
    def confidence(self) -> Float[np.ndarray, "n"]:
        """Probability of the class that it decides for."""
        return self.probabilities[np.arange(len(self.labels)), self.predicted]

    @property
    def right(self) -> np.ndarray:
        """Whether the clip is recognised, bool n."""
        return self.predicted == self.labels


def confident_errors(answers: Answers, most: int) -> list[int]:
    """Returns the places of up to `most` wrong clips, the most confident first; equals in the order of the clips."""
    wrong = np.flatnonzero(~answers.right)
    return wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:most].tolist()


def right_beside(answers: Answers, errors: list[int], most: int) -> list[int]:
    """Returns the places of up to `most` recognised clips to compare errors with.

    These are the most confident ones of the errors' true classes, a clip a class in the order of the errors, then the
    most confident ones of all.
    """
    right = np.flatnonzero(answers.right)
    by_confidence = right[np.argsort(-answers.confidence[right], kind="stable")]
    chosen: list[int] = []
    for label in dict.fromkeys(answers.labels[errors].tolist()):
        of_class = by_confidence[answers.labels[by_confidence] == label]
        chosen += of_class[:1].tolist()
    chosen += [place for place in by_confidence.tolist() if place not in set(chosen)]
    return chosen[:most]


def histogram(answers: Answers) -> tuple[Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]:
    """Returns the numbers of right and of wrong clips in `BINS` equal intervals of the confidence."""
    place = np.minimum((answers.confidence * BINS).astype(int), BINS - 1)
    right = answers.right
    return np.bincount(place[right], minlength=BINS), np.bincount(place[~right], minlength=BINS)


def calibration_error(answers: Answers) -> float:
    """Returns the expected calibration error (Guo et al. 2017): how far confidence and accuracy differ, by interval."""
    place = np.minimum((answers.confidence * BINS).astype(int), BINS - 1)
    sure = np.bincount(place, answers.confidence, minlength=BINS)
    right = np.bincount(place, answers.right, minlength=BINS)
    return float(np.abs(sure - right).sum() / len(place))


def wilson_interval(right: int, clips: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy that was measured on so many clips (Wilson's score interval)."""
    share = right / clips
    centre = (share + z**2 / (2 * clips)) / (1 + z**2 / clips)
    half = z / (1 + z**2 / clips) * math.sqrt(share * (1 - share) / clips + z**2 / (4 * clips**2))
    return centre - half, centre + half
