"""The numbers of the report: per-class metrics, calibration, heads, compared runs, findings and settings."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from rgbd_jax.config import default_config
from rgbd_jax.metrics import accuracies, rank_of_label, softmax
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.model import FAMILIES
from rgbd_jax.tools.fuse import Runs
from rgbd_jax.tools.report.source import Source

# Of all network families: titles of their heads, and of the metrics of heads and of sums of heads.
HEAD_TITLES = {head: title for family in FAMILIES.values() for head, title in family.heads.items()}
HEAD_TITLES["logits"] = "final prediction"
HEAD_SUMS = {metric: heads for family in FAMILIES.values() for metric, heads in family.head_sums.items()}
METRIC_TITLES = {f"top1_{head}": title for head, title in HEAD_TITLES.items() if head != "logits"}
METRIC_TITLES |= {metric: " + ".join(HEAD_TITLES[head] for head in heads) for metric, heads in HEAD_SUMS.items()}

BINS = 10  # of the confidence
# Thresholds of the findings.
CONFIDENT = 0.9
MIN_CLIPS = 5  # of a class
OVERFITTING = 0.1  # difference of accuracies
PAIR_FRACTION = 0.1  # of all errors

Heads = Mapping[str, Float[np.ndarray, "n k"]]


class Predictions:
    """Predictions of a run, of a head in it, or of the late fusion of runs, and what is counted from them."""

    def __init__(
        self,
        logits: Float[np.ndarray, "n k"],  # or other scores
        labels: Int[np.ndarray, "n"],
        class_names: Sequence[str],  # as far as they are known
        name: str = "",
        kind: str = "run",  # or "head", or "late fusion"
        modality: str = "",
        step: int = 0,  # of the checkpoint; 0 if there is none or it is not recorded
    ):
        self.labels, self.name, self.kind, self.modality, self.step = labels, name, kind, modality, step
        k = logits.shape[1]
        unnamed = [f"class {label}" for label in range(len(class_names), k)]
        self.class_names = np.array([*class_names, *unnamed], object)
        self.metrics = accuracies(logits, labels)
        self.probabilities = softmax(logits.astype(np.float64))  # n k
        self.predicted, self.confidence = logits.argmax(1), self.probabilities.max(1)  # n, n
        self.correct = self.predicted == labels  # n
        self.confusion = np.bincount(labels * k + self.predicted, minlength=k**2).reshape(k, k)  # true, predicted
        self.clips, self.predictions = self.confusion.sum(1), self.confusion.sum(0)  # k, k
        with np.errstate(invalid="ignore"):  # recall and precision, NaN without clips or predictions
            self.accuracy, self.precision = np.diag(self.confusion) / [self.clips, self.predictions]

    def worst_classes(self) -> Int[np.ndarray, "k"]:
        """Returns the classes by accuracy, the lowest first; those without clips come last."""
        return np.argsort(np.nan_to_num(self.accuracy, nan=2.0), kind="stable")

    def most_confident(self, *, correct: bool) -> list[int]:
        """Returns the correct, or the incorrect clips, the most confident first."""
        return [i for i in np.argsort(-self.confidence, kind="stable").tolist() if self.correct[i] == correct]

    def examples(self, errors: Sequence[int]) -> list[int]:
        """Returns the correct clips: first the most confident one of each class among the errors."""
        ranked = self.most_confident(correct=True)
        best = {self.labels[clip]: clip for clip in reversed(ranked)}  # of each class
        examples = [best[label] for label in self.labels[list(errors)] if label in best]
        return list(dict.fromkeys([*examples, *ranked]))

    def confused_pairs(self) -> list[tuple[int, int, int, int]]:
        """Returns true class, predicted class, clips, and clips the other way round, the most frequent pairs first."""
        errors = self.confusion - np.diag(np.diag(self.confusion))
        pairs = [(i, j, int(errors[i, j]), int(errors[j, i])) for i, j in np.argwhere(errors).tolist()]
        return sorted(pairs, key=lambda pair: (-pair[2], -pair[2] / self.clips[pair[0]]))

    def calibration(self) -> tuple[Int[np.ndarray, "bins"], Int[np.ndarray, "bins"], Float[np.ndarray, "bins"]]:
        """Returns clips, correct clips and summed confidence in equal intervals of the confidence."""
        bins = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        clips = np.bincount(bins, minlength=BINS)
        correct = np.bincount(bins[self.correct], minlength=BINS)
        return clips, correct, np.bincount(bins, self.confidence, BINS)

    def calibration_error(self) -> float:
        """Returns the expected calibration error, ECE (Guo et al. 2017)."""
        _, correct, confidence = self.calibration()
        return float(np.abs(confidence - correct).sum() / len(self.labels))

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Returns the 95 % confidence interval of the top-1 accuracy (Wilson's score interval)."""
        rate, clips = self.correct.mean(), len(self.labels)
        centre, half = rate + z**2 / (2 * clips), z * math.sqrt(rate * (1 - rate) / clips + (z / clips) ** 2 / 4)
        return (centre - half) / (1 + z**2 / clips), (centre + half) / (1 + z**2 / clips)


def titled(heads: Heads) -> dict[str, Float[np.ndarray, "n k"]]:
    """Returns title -> logits of the heads, in the order of their family: the final prediction first."""
    order = [*(name for name in HEAD_TITLES if name in heads), *(name for name in heads if name not in HEAD_TITLES)]
    return {HEAD_TITLES.get(name, name): heads[name] for name in order}


def agreement(heads: Heads) -> Float[np.ndarray, "h h"]:
    """Returns the fraction of the clips for which two heads predict the same class."""
    predicted = np.stack([logits.argmax(1) for logits in heads.values()])  # h n
    return (predicted[:, None] == predicted[None]).mean(-1)


def cka(heads: Heads) -> Float[np.ndarray, "h h"]:
    """Returns the linear centred kernel alignment of the logits of every two heads (Kornblith et al. 2019, eq. 5).

    1 for a rotation and scaling, 0 without any relation over the clips; NaN where a head's logits are constant.
    """
    centred = [logits - np.mean(logits, axis=0, dtype=np.float64) for logits in heads.values()]
    products = np.array([[np.linalg.norm(one.T @ other) for other in centred] for one in centred])
    with np.errstate(invalid="ignore"):
        return products**2 / np.outer(np.diag(products), np.diag(products))


def head_rows(heads: Heads, predictions: Predictions) -> list[tuple[str, float, int, int]]:
    """Returns title, top-1 accuracy, and the clips that are correct, or incorrect, unlike the final prediction.

    The rows are the heads, and the sums of the logits of several heads that the family evaluates.
    """
    sums = {METRIC_TITLES[metric]: names for metric, names in HEAD_SUMS.items() if set(names) <= heads.keys()}
    summed = titled(heads) | {title: np.sum([heads[name] for name in names], axis=0) for title, names in sums.items()}
    rows = []
    for title, logits in summed.items():
        correct = logits.argmax(1) == predictions.labels
        better, worse = int((correct & ~predictions.correct).sum()), int((predictions.correct & ~correct).sum())
        rows.append((title, float(correct.mean()), better, worse))
    return rows


def compare(runs: Runs) -> list[Predictions]:
    """Returns the runs, each followed by its heads of one modality, and the late fusion of several runs."""
    labels, class_names = runs.labels, runs.scores[0].class_names
    folders = [file.parents[1] for file in runs.files]
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    compared = []
    for name, scores, logits in zip(names, runs.scores, runs.logits, strict=True):
        compared.append(Predictions(logits, labels, class_names, name, "run", scores.modality, scores.step))
        index = {clip: i for i, clip in enumerate(scores.names)}
        order = [index[clip] for clip in runs.names]
        for head in (head for head in MODALITIES if head in scores.heads):
            title, logits = f"{name}: {HEAD_TITLES[head]}", scores.heads[head][order]
            compared.append(Predictions(logits, labels, class_names, title, "head", head, scores.step))
    if len(names) > 1:
        mean = runs.probabilities.mean(0)
        compared.append(Predictions(mean, labels, class_names, "late fusion", "late fusion"))
    return compared


def correct_patterns(runs: Sequence[Predictions]) -> list[tuple[str, int]]:
    """Returns which runs are correct together and for how many clips, most clips first."""
    counts: Counter[str] = Counter()
    for pattern in np.stack([run.correct for run in runs], axis=1):  # r
        names = " and ".join(run.name for run, is_correct in zip(runs, pattern, strict=True) if is_correct)
        counts["all runs" if pattern.all() else f"only {names}" if names else "none"] += 1
    return counts.most_common()


def findings(source: Source, compared: Sequence[Predictions]) -> Iterator[tuple[str, str]]:
    """Yields the id of a section and a sentence about what stands out in it."""
    of = compared[0]
    names, clips, predicted, correct = of.class_names, of.clips, of.predictions, np.diag(of.confusion)
    errors, top1 = int((~of.correct).sum()), of.metrics["top1"]
    if not errors:
        yield "classes", "Every clip is predicted correctly."
        return
    pairs = [(n + back, a, b) for a, b, n, back in of.confused_pairs() if n > back or (n == back and a < b)]
    for count, a, b in sorted(pairs, reverse=True)[:3]:
        if count >= max(3, PAIR_FRACTION * errors):
            yield "classes", f"{count} of {errors} errors confuse “{names[a]}” and “{names[b]}” ({count / errors:.0%})."
    enough = np.flatnonzero(clips >= MIN_CLIPS)
    if len(enough) and of.accuracy[enough].min() < 1:
        i = enough[of.accuracy[enough].argmin()]
        rate = f"{correct[i]} of {clips[i]} clips ({of.accuracy[i]:.1%})"
        yield "classes", f"“{names[i]}” has the lowest accuracy: {rate}."
    if (half := int((of.accuracy[enough] < 0.5).sum())) > 1:
        yield "classes", f"{half} of {len(enough)} classes have an accuracy below 50 %."
    if len(often := enough[predicted[enough] > 1.5 * clips[enough]]):
        i = often[(predicted - clips)[often].argmax()]
        rate = f"{correct[i]} of {predicted[i]} predictions are correct ({of.precision[i]:.1%})"
        yield "classes", f"“{names[i]}” is predicted too often: {rate}."
    if never := [f"“{names[i]}”" for i in np.flatnonzero((clips > 0) & (predicted == 0))]:
        some = ", ".join([*never[:3], "…"] if len(never) > 3 else never)
        yield "classes", f"Never predicted: {len(never)} {'class' if len(never) == 1 else 'classes'} ({some})."
    if confident := int((of.confidence[~of.correct] >= CONFIDENT).sum()):
        advice = "check them for wrong labels, and for what the input does not show"
        yield "clips", f"{confident} of {errors} errors have a confidence of {CONFIDENT:.0%} or more: {advice}."
    if len(names) > 10:
        second = int((rank_of_label(of.probabilities, of.labels) == 1).sum())
        yield "clips", f"In {second} of {errors} errors ({second / errors:.0%}) the true class has the second rank."
    best, best_top1, *_ = max(head_rows(source.scores.heads, of), key=lambda row: row[1])
    if best_top1 > top1:
        more = f"a top-1 accuracy of {best_top1:.1%}, more than the final prediction ({top1:.1%})"
        yield "heads", f"{best} reaches {more}."
    if compared[-1].kind == "late fusion":
        run = max((each for each in compared if each.kind == "run"), key=lambda run: run.metrics["top1"])
        fused = f"Late fusion of the runs reaches a top-1 accuracy of {compared[-1].metrics['top1']:.1%}"
        yield "comparison", f"{fused}, the best single run ({run.name}) {run.metrics['top1']:.1%}."
    curves = source.curves
    if curves.keys() >= {"train top1", "validation top1", "validation cross_entropy"}:
        last, top1s = float(np.mean(curves["train top1"][1][-5:])), curves["validation top1"][1]
        steps, losses = curves["validation cross_entropy"]
        lowest = int(np.argmin(losses))
        if last - top1s[-1] > OVERFITTING:
            rates = f"the last top-1 accuracy is {last:.1%} in training and {top1s[-1]:.1%} in validation"
            yield "training", f"Overfitting: {rates}; more clips, augmentation or weight decay may help."
        if lowest < len(losses) - 2 and losses[-1] > 1.05 * losses[lowest]:
            yield "training", f"The validation cross entropy was lowest at step {steps[lowest]}, and has risen since."
        if len(top1s) > 3 and int(np.argmax(top1s)) == len(top1s) - 1:
            yield "training", "Validation accuracy was highest at the end: longer training may improve it."


def settings(config: ConfigDict) -> list[tuple[str, str, str]]:
    """Returns name, value and default of every config field; the default is "" for a field that has none."""

    def text(value: Any) -> str:
        return ", ".join(map(text, value)) if isinstance(value, list | tuple) else str(value)

    fields, defaults = (flatten_dict(each.to_dict(), sep=".") for each in (config, default_config(config.modality)))
    return [(name, text(value), text(defaults.get(name, ""))) for name, value in sorted(fields.items())]
