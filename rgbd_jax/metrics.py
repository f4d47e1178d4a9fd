"""Accuracy metrics, computed once from the logits of every clip: every clip counts once; metrics in JSON."""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from rgbd_jax.models.family import Family


def rank_of_label(
    logits: Float[Array | np.ndarray, "b k"], labels: Int[Array | np.ndarray, "b"]
) -> Int[Array | np.ndarray, "b"]:
    """Returns how many classes score higher than the true one (0: the prediction is correct).

    Ties go to the lower class index, as in argmax. NaN ranks above every other score; a true class whose score is not
    finite has rank k, below all. Works with JAX and NumPy arrays.
    """
    xp: ModuleType = logits.__array_namespace__()
    score = xp.take_along_axis(logits, labels[:, None], axis=1)  # b 1
    earlier = xp.arange(logits.shape[1]) < labels[:, None]  # b k
    higher = xp.sum(~(logits <= score) | ((logits == score) & earlier), axis=1)
    return xp.where(xp.isfinite(score[:, 0]), higher, logits.shape[1])


def accuracies(scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> dict[str, float]:
    """Returns `top1`, `top5` and `mean_per_class` (averaged over the classes that have clips), from 0 to 1.

    The scores are logits, probabilities or sums of them.
    """
    ranks = rank_of_label(scores, labels)
    correct = ranks < 1
    return {
        "top1": float(np.mean(correct)),
        "top5": float(np.mean(ranks < min(5, scores.shape[1]))),
        "mean_per_class": float(np.mean([correct[labels == label].mean() for label in np.unique(labels)])),
    }


def average_views(logits: Float[np.ndarray, "v b k"]) -> Float[np.ndarray, "b k"]:
    """Returns the logarithm of the class probabilities averaged over the views of each clip.

    Averaging probabilities, as is usual for video networks, gives an uncertain view less weight. The logits of a single
    view are returned unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logits that are not finite are reported elsewhere
        log_probabilities = wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)  # v b k
        return (np.logaddexp.reduce(log_probabilities, axis=0) - np.log(len(wide))).astype(logits.dtype)


def softmax(logits: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch k"]:
    """Returns the probabilities of the classes."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def measure(
    family: Family,
    heads: Mapping[str, Float[np.ndarray, "n k"]],
    labels: Int[np.ndarray, "n"],
    losses: Mapping[str, Float[np.ndarray, "n"]],
) -> dict[str, float]:
    """Returns the metrics over all clips, those of `family.metric_names` in this order.

    They are the mean of each loss; `top1`, `top5` and `mean_per_class` of the head "logits", the prediction;
    `top1_<head>` of every other head; the top-1 accuracy of the family's sums of heads; and `reference_protocol`, the
    accuracy that the reference reports.
    """

    def top1(*names: str) -> float:
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and so not correct
            summed = np.stack([heads[name] for name in names]).sum(axis=0, dtype=np.float64)
        return float(np.mean(rank_of_label(summed, labels) < 1))

    result = {name: float(np.mean(values, dtype=np.float64)) for name, values in losses.items()}
    result |= accuracies(heads["logits"], labels)
    result |= {f"top1_{name}": top1(name) for name in heads if name != "logits"}
    result |= {metric: top1(*names) for metric, names in family.head_sums.items()}
    result["reference_protocol"] = max(top1(*names) for names in family.reference_protocol)
    return {name: result[name] for name in family.metric_names if name in result}


def to_json_able(value: Any) -> Any:
    """Returns a value with None in place of every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: to_json_able(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_able(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics that `to_json_able` wrote, NaN in place of None."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}
