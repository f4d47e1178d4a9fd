"""How alike the heads of one network answer: branches of a stream, or streams of a fusion."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

NAMES = {
    "logits": "decision",
    "small": "small branch",
    "medium": "medium branch",
    "large": "large branch",
    "rgb": "RGB stream",
    "depth": "depth stream",
}


@dataclasses.dataclass(frozen=True)
class HeadFigures:
    """One head beside the one that decides.

    Attributes:
        name: the head.
        top1: share of all clips that it recognises.
        saves: clips that it alone recognises, and the decision does not.
        spoils: clips that it does not recognise, and the decision does.
    """

    name: str
    top1: float
    saves: int
    spoils: int


def head_name(name: str, stream: str) -> str:
    """Returns what a head is called on the page."""
    return "fused" if (name, stream) == ("logits", "fusion") else NAMES.get(name, name)


def ordered(heads: Mapping[str, Float[np.ndarray, "n k"]]) -> list[str]:
    """Returns the names of the heads, the one that decides first, the branches from small to large."""
    known = [name for name in NAMES if name in heads]
    return known + [name for name in heads if name not in known]


def head_figures(heads: Mapping[str, Float[np.ndarray, "n k"]], labels: Int[np.ndarray, "n"]) -> list[HeadFigures]:
    """Returns how each head does beside "logits", which decides."""
    right = {name: logits.argmax(1) == labels for name, logits in heads.items()}
    decided = right["logits"]
    return [
        HeadFigures(
            name, float(right[name].mean()), int((right[name] & ~decided).sum()), int((decided & ~right[name]).sum())
        )
        for name in ordered(heads)
    ]


def agreement(heads: Mapping[str, Float[np.ndarray, "n k"]]) -> Float[np.ndarray, "h h"]:
    """Returns the share of the clips that two heads take for the same class, for every two heads (see `ordered`)."""
    said = np.stack([heads[name].argmax(1) for name in ordered(heads)])  # h n
    return (said[:, None] == said[None]).mean(-1)


def linear_cka(one: Float[np.ndarray, "n k"], other: Float[np.ndarray, "n m"]) -> float:
    """Returns the linear centred kernel alignment of two answers to the same clips (Kornblith et al. 2019, eq. 5).

    1 where one is a rotation and scaling of the other, 0 where they vary over the clips without any relation; not a
    number where one of them does not vary at all.
    """
    one, other = (np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64) for x in (one, other))
    with np.errstate(invalid="ignore"):
        return float(
            np.linalg.norm(other.T @ one) ** 2 / (np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other))
        )


def similarity(heads: Mapping[str, Float[np.ndarray, "n k"]]) -> Float[np.ndarray, "h h"]:
    """Returns the linear CKA of the logits of every two heads (see `ordered`)."""
    names = ordered(heads)
    result = np.ones((len(names), len(names)))
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            result[i, j] = result[j, i] = linear_cka(heads[one], heads[other])
    return result


def recognised(heads: Mapping[str, Float[np.ndarray, "n k"]], labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "h n"]:
    """Returns which clips each head recognises."""
    return np.stack([heads[name].argmax(1) == labels for name in ordered(heads)])
