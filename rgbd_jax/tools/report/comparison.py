"""Several runs on the same clips: what each recognises alone, and what they recognise together."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from rgbd_jax.metrics import accuracies, softmax
from rgbd_jax.tools.fuse import Runs, fused
from rgbd_jax.tools.report.heads import head_name, ordered


@dataclasses.dataclass(frozen=True)
class Compared:
    """One run, one head of a fusion network, or several runs together.

    Attributes:
        name: what it is called on the page.
        kind: "run", "head" (of a fusion network) or "sum" (of the runs' probabilities).
        stream: the run's stream, "" for a sum.
        step: step of the checkpoint, 0 where there is none.
        top1: share of all clips.
        top5: share of all clips.
        mean_per_class: top-1 of each class, averaged.
        alone: clips that no other run recognises; None for heads and sums.
        right: which clips it recognises.
    """

    name: str
    kind: str
    stream: str
    step: int
    top1: float
    top5: float
    mean_per_class: float
    alone: int | None
    right: Bool[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        rows: runs, each followed by its heads if it is a fusion, and at last their sum if they are several.
        patterns: (which runs recognise a clip, number of such clips), most clips first.
        any_right: share of the clips that at least one run recognises.
    """

    rows: tuple[Compared, ...]
    patterns: tuple[tuple[tuple[bool, ...], int], ...]
    any_right: float

    @property
    def runs(self) -> list[Compared]:
        """The runs alone."""
        return [row for row in self.rows if row.kind == "run"]


def compare(runs: Runs, names: Sequence[str]) -> Comparison:
    """Returns runs on the same clips beside each other.

    Args:
        runs: their scores.
        names: what each is called.
    """
    right = np.stack([logits.argmax(1) == runs.labels for logits in runs.logits])  # r n
    alone = (right & (right.sum(0) == 1)).sum(1)  # r
    rows = []
    for number, (name, scores) in enumerate(zip(names, runs.scores, strict=True)):
        several = int(alone[number]) if len(names) > 1 else None
        rows.append(
            _row(name, "run", runs.logits[number], runs.labels, stream=scores.modality, step=scores.step, alone=several)
        )
        if scores.modality == "fusion":
            order = _order(scores.names, runs.names)
            rows += [
                _row(
                    f"{name}: {head_name(head, 'fusion')}", "head", scores.heads[head][order], runs.labels,
                    stream=head, step=scores.step,
                )
                for head in ordered(scores.heads)
                if head != "logits"
            ]  # fmt: skip
    if len(names) > 1:
        together = fused(softmax(runs.logits), [1 / len(names)] * len(names))
        rows.append(_row("sum of the runs' probabilities", "sum", together, runs.labels))
    patterns, clips = np.unique(right, axis=1, return_counts=True)  # r p, p
    by_clips = sorted(zip(patterns.T.tolist(), clips.tolist(), strict=True), key=lambda each: -each[1])
    return Comparison(
        tuple(rows), tuple((tuple(pattern), count) for pattern, count in by_clips), float(right.any(0).mean())
    )


def class_accuracies(
    rights: Mapping[str, Bool[np.ndarray, "n"]], labels: Int[np.ndarray, "n"], classes: int
) -> dict[str, Float[np.ndarray, "k"]]:
    """Returns the accuracy of each class by name of a run; not a number without clips."""
    clips = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return {name: np.bincount(labels[right], minlength=classes) / clips for name, right in rights.items()}


def _row(
    name: str, kind: str, scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"], *, stream: str = "",
    step: int = 0, alone: int | None = None,
) -> Compared:  # fmt: skip
    return Compared(
        name, kind, stream, step, **accuracies(scores, labels), alone=alone, right=scores.argmax(1) == labels
    )


def _order(there: Sequence[str], wanted: Sequence[str]) -> list[int]:
    place = {name: i for i, name in enumerate(there)}
    return [place[name] for name in wanted]
