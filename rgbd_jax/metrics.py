"""Figures of merit, computed once from what the network says of each clip: every clip counts once."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from jaxtyping import Array, Float, Int

# What the reference reports as its accuracy is the best of the figures of several sums of heads. For one stream it
# unpacks the network's four outputs shifted by one, so that these are the branch `large` and three sums.
ONE_STREAM_PROTOCOL = (("large",), ("logits", "small"), ("logits", "medium"), ("medium", "small"))
FUSION_PROTOCOL = (("logits",), ("rgb", "depth"), ("rgb", "depth", "logits"))
# Accuracies of the fusion network that are those of no single head.
FUSION_SUMS = {"top1_rgb_depth": ("rgb", "depth"), "top1_all": ("rgb", "depth", "logits")}


def rank_of_label(
    logits: Float[Array | np.ndarray, "b k"], labels: Int[Array | np.ndarray, "b"]
) -> Int[Array | np.ndarray, "b"]:
    """Returns how many classes score higher than the true one (0: the clip is recognised).

    Of classes with equal scores the first counts as higher, as for an argmax. A score that is not a number counts as
    higher than every other; a true class whose score is not finite has rank k, below all.

    Args:
        logits: scores of the classes, of JAX or of NumPy; the result is of the same.
        labels: true classes, from 0 to k - 1.
    """
    xp: ModuleType = logits.__array_namespace__()
    score = xp.take_along_axis(logits, labels[:, None], axis=1)  # b 1
    earlier = xp.arange(logits.shape[1]) < labels[:, None]  # b k
    higher = xp.sum(~(logits <= score) | ((logits == score) & earlier), axis=1)
    return xp.where(xp.isfinite(score[:, 0]), higher, logits.shape[1])


def accuracies(scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> dict[str, float]:
    """Returns `top1`, `top5` and `mean_per_class` of one head: shares from 0 to 1.

    `mean_per_class` is the top-1 accuracy of each class, averaged over the classes that have clips.

    Args:
        scores: of the classes: logits, probabilities or sums of them.
        labels: true classes, from 0 to k - 1.
    """
    classes = scores.shape[1]
    ranks = rank_of_label(scores, labels)
    clips = np.bincount(labels, minlength=classes)  # k
    hits = np.bincount(labels[ranks < 1], minlength=classes)  # k
    present = clips > 0
    return {
        "top1": float(np.mean(ranks < 1)),
        "top5": float(np.mean(ranks < min(5, classes))),
        "mean_per_class": float(np.mean(hits[present] / clips[present])),
    }


def average_views(logits: Float[np.ndarray, "v b k"]) -> Float[np.ndarray, "b k"]:
    """Returns logits whose class probabilities are the mean of those of several views of each clip.

    Probabilities are averaged, as is usual for networks of video, so that a view that is unsure counts for less. The
    result is their logarithm; of a single view it is the logits as they are.

    Args:
        logits: of every view, clip and class.
    """
    if len(logits) == 1:
        return logits[0]
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logits that are not finite have no probabilities, and are found later
        of_class = wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)  # v b k, log probabilities
        return (np.logaddexp.reduce(of_class, axis=0) - np.log(len(wide))).astype(logits.dtype)


def softmax(logits: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch k"]:
    """Returns the probabilities of the classes."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def metric_names(fusion: bool) -> tuple[str, ...]:
    """Returns the names of the figures that an evaluation gives, of the fusion network or of one stream."""
    losses = ("loss", "cross_entropy", *(("modality", "reconstruction") if fusion else ()), "distillation")
    heads = ("rgb", "depth") if fusion else ("small", "medium", "large")
    sums = tuple(FUSION_SUMS) if fusion else ()
    return (*losses, "top1", *(f"top1_{name}" for name in heads), *sums, "top5", "mean_per_class", "reference_protocol")


def measure(
    heads: Mapping[str, Float[np.ndarray, "n k"]],
    labels: Int[np.ndarray, "n"],
    losses: Mapping[str, Float[np.ndarray, "n"]],
) -> dict[str, float]:
    """Returns the metrics of all clips.

    Args:
        heads: logits of every head; "logits" decides. The others are "small", "medium" and "large" (one stream), or
            "rgb" and "depth" (fusion).
        labels: true classes, from 0 to k - 1.
        losses: losses of each clip.

    Returns:
        The mean of each loss; `top1`, `top5` and `mean_per_class` of the head "logits"; `top1_<head>` of every other;
        with fusion also `top1_rgb_depth` and `top1_all` of the sum of two and of three heads; and
        `reference_protocol`, the accuracy as the reference reports it.
    """
    wide = {name: np.asarray(logits, np.float64) for name, logits in heads.items()}

    def top1(*names: str) -> float:
        with np.errstate(invalid="ignore"):  # inf - inf is no number, and so not right
            summed = np.sum([wide[name] for name in names], axis=0)
        return float(np.mean(rank_of_label(summed, labels) < 1))

    fusion = "rgb" in heads
    result = {name: float(np.mean(values, dtype=np.float64)) for name, values in losses.items()}
    decided = accuracies(wide["logits"], labels)
    result["top1"] = decided["top1"]
    result |= {f"top1_{name}": top1(name) for name in heads if name != "logits"}
    result |= {name: top1(*names) for name, names in FUSION_SUMS.items() if fusion}
    result |= {"top5": decided["top5"], "mean_per_class": decided["mean_per_class"]}
    result["reference_protocol"] = max(top1(*names) for names in (FUSION_PROTOCOL if fusion else ONE_STREAM_PROTOCOL))
    return result
