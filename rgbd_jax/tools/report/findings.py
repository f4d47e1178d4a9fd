"""What stands out of a run: sentences with the figures that they rest on."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from rgbd_jax.metrics import rank_of_label
from rgbd_jax.tools.report.classes import class_figures, most_confused
from rgbd_jax.tools.report.comparison import Comparison
from rgbd_jax.tools.report.confidence import Answers
from rgbd_jax.tools.report.curves import Curves
from rgbd_jax.tools.report.heads import HeadFigures, head_name
from rgbd_jax.tools.report.tables import percent

FEW = 5  # clips below which nothing is said of a class
SURE = 0.9
PART_OF_ERRORS = 0.1  # a pair that makes up so much of all errors is named


@dataclasses.dataclass(frozen=True)
class Finding:
    """A sentence.

    Attributes:
        text: the sentence.
        section: id of the section of the page that shows more.
    """

    text: str
    section: str


def class_findings(counts: Int[np.ndarray, "k k"], names: Sequence[str]) -> Iterator[Finding]:
    """Gives what stands out of a confusion matrix."""
    figures = class_figures(counts)
    errors = int(counts.sum() - np.trace(counts))
    if not errors:
        yield Finding("Every clip is recognised.", "classes")
        return
    seen: set[frozenset[int]] = set()
    for pair in sorted(most_confused(counts, 2 * len(counts)), key=lambda each: -(each.clips + each.back)):
        both = frozenset((pair.true, pair.predicted))
        together = pair.clips + pair.back
        if both in seen or together < 3 or together < PART_OF_ERRORS * errors or len(seen) == 3:
            continue
        seen.add(both)
        yield Finding(
            f"“{names[pair.true]}” and “{names[pair.predicted]}”, taken for each other, make up {together} of {errors} "
            f"errors ({together / errors:.0%}).",
            "classes",
        )
    enough = np.flatnonzero(figures.clips >= FEW)
    if len(enough):
        worst = int(enough[np.argmin(figures.accuracy[enough])])
        if figures.right[worst] < figures.clips[worst]:
            yield Finding(
                f"The class recognised least is “{names[worst]}”: {figures.right[worst]} of {figures.clips[worst]} "
                f"clips ({percent(float(figures.accuracy[worst]))}).",
                "classes",
            )
        half = np.flatnonzero((figures.clips >= FEW) & (figures.accuracy < 0.5))
        if len(half) > 1:
            yield Finding(f"{len(half)} of {len(enough)} classes are recognised less than half of the time.", "classes")
    often = np.flatnonzero((figures.clips >= FEW) & (figures.predicted > 1.5 * figures.clips))
    if len(often):
        most = int(often[np.argmax((figures.predicted - figures.clips)[often])])
        yield Finding(
            f"“{names[most]}” is said too often: for {figures.predicted[most]} clips, and {figures.clips[most]} are of "
            f"it (precision {percent(float(figures.precision[most]))}).",
            "classes",
        )
    never = np.flatnonzero((figures.clips > 0) & (figures.predicted == 0))
    if len(never):
        some = ", ".join(f"“{names[label]}”" for label in never[:3]) + (", …" if len(never) > 3 else "")
        yield Finding(f"Never said: {len(never)} {'class' if len(never) == 1 else 'classes'} ({some}).", "classes")


def answer_findings(answers: Answers) -> Iterator[Finding]:
    """Gives what stands out of the network's confidence."""
    wrong = ~answers.right
    if not wrong.any():
        return
    sure = int((answers.confidence[wrong] >= SURE).sum())
    if sure:
        yield Finding(
            f"{sure} of {int(wrong.sum())} errors are made with a confidence of {SURE:.0%} or more: look at these for "
            "wrong labels, or for what the network cannot see.",
            "clips",
        )
    classes = answers.probabilities.shape[1]
    if classes > 10:
        second = int((rank_of_label(answers.probabilities, answers.labels)[wrong] == 1).sum())
        yield Finding(
            f"In {second} of {int(wrong.sum())} errors ({second / wrong.sum():.0%}) the right class comes second.",
            "clips",
        )


def training_findings(curves: Curves, steps_per_epoch: float | None) -> Iterator[Finding]:
    """Gives what stands out of the curves."""
    train, validation = curves["train"], curves["validation"]
    if not ({"top1"} <= train.keys() and {"top1", "cross_entropy"} <= validation.keys()):
        return
    last = float(np.mean(train["top1"].values[-5:]))
    gap = last - validation["top1"].values[-1]
    if gap > 0.1:
        yield Finding(
            f"At the end, training top-1 ({last:.1%}) lies {100 * gap:.0f} points above validation "
            f"({validation['top1'].values[-1]:.1%}): it overfits; more clips, augmentation or weight decay may help.",
            "curves",
        )
    losses = validation["cross_entropy"].values
    best = int(np.argmin(losses))
    if best < len(losses) - 2 and losses[-1] > 1.05 * losses[best]:
        steps = validation["cross_entropy"].steps
        when = f"epoch {steps[best] / steps_per_epoch:.0f}" if steps_per_epoch else f"step {steps[best]}"
        yield Finding(f"Validation cross entropy was lowest in {when} and has risen since.", "curves")
    if (
        len(validation["top1"].values) > 3
        and np.argmax(validation["top1"].values) == len(validation["top1"].values) - 1
    ):
        yield Finding("Validation accuracy was highest in the last epoch: a longer training may still gain.", "curves")


def head_findings(figures: Sequence[HeadFigures], stream: str) -> Iterator[Finding]:
    """Gives what stands out of the heads."""
    decided = figures[0]
    best = max(figures, key=lambda head: head.top1)
    if best.top1 > decided.top1:
        yield Finding(
            f"The {head_name(best.name, stream)} alone reaches {best.top1:.1%}, more than the decision "
            f"({decided.top1:.1%}).",
            "heads",
        )


def comparison_findings(comparison: Comparison) -> Iterator[Finding]:
    """Gives what stands out of several runs."""
    runs = comparison.runs
    if len(runs) < 2:
        return
    best, together = max(runs, key=lambda run: run.top1), comparison.rows[-1]
    change = together.top1 - best.top1
    said = "more than" if change > 0 else "less than" if change < 0 else "as much as"
    yield Finding(
        f"The sum of the runs' probabilities reaches {together.top1:.1%}, {said} the best of them alone "
        f"({best.name}, {best.top1:.1%}); at least one of them is right for {comparison.any_right:.1%}.",
        "comparison",
    )
