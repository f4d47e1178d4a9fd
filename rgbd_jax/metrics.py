"""Accuracies as sums over clips that are divided once: every clip counts once, whatever the batch or device count."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rgbd_jax.models.network import NetworkOutput

Sums = Mapping[str, Array]

# What the reference reports as its accuracy: it unpacks the network's four outputs shifted by one at evaluation, so
# that its four figures are those of the branch `large` and of these sums of logits; the best of them is published.
REFERENCE_PROTOCOL = {
    "reference_large": ("large",),
    "reference_logits_small": ("logits", "small"),
    "reference_logits_medium": ("logits", "medium"),
    "reference_medium_small": ("medium", "small"),
}


def rank_of_label(logits: Float[Array, "b k"], labels: Int[Array, "b"]) -> Int[Array, "b"]:
    """Returns how many classes score higher than the true one (0: the clip is recognised).

    Of classes with equal scores the first counts as higher, as for an argmax; a non-finite score is never right.
    """
    score = jnp.take_along_axis(logits, labels[:, None], axis=1)  # b 1
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]  # b k
    higher = jnp.sum((logits > score) | ((logits == score) & earlier), axis=1)
    return jnp.where(jnp.isfinite(score[:, 0]), higher, logits.shape[1])


def sums(
    output: NetworkOutput, losses: Mapping[str, Float[Array, "b"]], labels: Int[Array, "b"], mask: Bool[Array, "b"]
) -> Sums:
    """Returns the sums over the clips where mask is true that `summarise` makes metrics of."""
    heads = {"logits": output.logits, **output.branch_logits}
    clips = len(labels)
    labels = jnp.where(mask, labels, 0)
    totals = {name: jnp.sum(jnp.where(mask, values, 0)) for name, values in losses.items()}

    def hits(logits: Array, k: int = 1) -> Array:
        return jnp.sum(mask & (rank_of_label(logits, labels) < k))

    totals["top1"] = hits(output.logits)
    totals["top5"] = hits(output.logits, 5)
    for name, logits in output.branch_logits.items():
        totals[f"top1_{name}"] = hits(logits)
    for name, parts in REFERENCE_PROTOCOL.items():
        totals[name] = hits(jnp.sum(jnp.stack([heads[part] for part in parts]), axis=0))
    predicted = jnp.argmax(output.logits, axis=1)  # b
    classes = output.logits.shape[1]
    cells = jnp.where(mask, labels * classes + predicted, classes * classes)  # b; the last cell takes the padding
    confusion = jax.ops.segment_sum(jnp.ones(clips, jnp.int32), cells, classes * classes + 1)[:-1]
    totals["confusion"] = confusion.reshape(classes, classes)  # true class, predicted class
    totals["clips"] = jnp.sum(mask)
    return totals


def add(total: Mapping[str, np.ndarray] | None, more: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the sums over two disjoint sets of clips, on the host in float64 and int64."""
    wide = {
        name: np.asarray(value, np.float64 if np.issubdtype(value.dtype, np.floating) else np.int64)
        for name, value in more.items()
    }
    return wide if total is None else {name: np.asarray(total[name]) + value for name, value in wide.items()}


def summarise(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics of all clips: top-1, top-5, each branch, mean per class, the reference's protocol, losses.

    `mean_per_class` averages over the classes that have clips.
    """
    clips = int(totals["clips"])
    confusion = np.asarray(totals["confusion"])
    per_class = confusion.sum(1)
    present = per_class > 0
    result = {name: float(value) / clips for name, value in totals.items() if name not in ("clips", "confusion")}
    result["reference_protocol"] = max(result.pop(name) for name in REFERENCE_PROTOCOL)
    result["mean_per_class"] = float(np.mean(confusion.diagonal()[present] / per_class[present]))
    return result
