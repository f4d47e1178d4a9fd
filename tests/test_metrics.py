"""Metrics against plain loops over the clips, and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_jax.metrics import accuracies, measure, rank_of_label
from rgbd_jax.model import FAMILIES

HEADS = {"unimodal": ("logits", "small", "medium", "large"), "fusion": ("logits", "rgb", "depth")}
SUMS = {"unimodal": {}, "fusion": {"top1_rgb_depth": ("rgb", "depth"), "top1_all": ("rgb", "depth", "logits")}}
REFERENCE_PROTOCOL = {
    "unimodal": (["large"], ["logits", "small"], ["logits", "medium"], ["medium", "small"]),
    "fusion": (["logits"], ["rgb", "depth"], ["rgb", "depth", "logits"]),
}
# Few values, so that scores often tie; their sums are exact.
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf])


@st.composite
def scored(draw, names):
    clips, classes = draw(st.integers(1, 8)), draw(st.integers(1, 7))
    rows = st.lists(st.lists(VALUES, min_size=classes, max_size=classes), min_size=clips, max_size=clips)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=clips, max_size=clips))
    return {name: np.array(draw(rows), np.float32) for name in names}, np.array(labels, np.int32)


def right(row, label, k=1):
    """Whether the label is among the first k: what is not a number before all, of equals the lower class first."""
    order = sorted(range(len(row)), key=lambda c: (not math.isnan(row[c]), 0 if math.isnan(row[c]) else -row[c], c))
    return math.isfinite(row[label]) and label in order[:k]


def fraction(rows, labels, k=1):
    return sum(right(row, label, k) for row, label in zip(rows, labels, strict=True)) / len(labels)


def summed(heads, *names):
    clips, classes = heads[names[0]].shape
    return [[sum(float(heads[name][i, c]) for name in names) for c in range(classes)] for i in range(clips)]


@pytest.mark.parametrize("family", ["unimodal", "fusion"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_metrics_equal_loops(family, data):
    heads, labels = data.draw(scored(HEADS[family]))
    losses = np.array(data.draw(st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8)), np.float32)
    losses, rows = losses[: len(labels)], summed(heads, "logits")
    by_class = [[row for row, other in zip(rows, labels, strict=True) if other == label] for label in set(labels)]
    found = [fraction(mine, [label] * len(mine)) for mine, label in zip(by_class, set(labels), strict=True)]
    expected = {
        "loss": sum(map(float, losses)) / len(labels),
        "top1": fraction(rows, labels),
        "top5": fraction(rows, labels, 5),
        "mean_per_class": sum(found) / len(found),
        **{f"top1_{head}": fraction(summed(heads, head), labels) for head in HEADS[family][1:]},
        **{metric: fraction(summed(heads, *names), labels) for metric, names in SUMS[family].items()},
        "reference_protocol": max(fraction(summed(heads, *names), labels) for names in REFERENCE_PROTOCOL[family]),
    }
    assert measure(FAMILIES[family], heads, labels, {"loss": losses}) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)  # JAX compiles for every shape
@given(scored(("logits",)))
def test_rank_is_the_place_in_the_order_with_jax_and_numpy(case):
    logits, labels = case[0]["logits"], case[1]
    ranks = rank_of_label(logits, labels)
    assert isinstance(ranks, np.ndarray)
    for row, label, rank in zip(logits.tolist(), labels.tolist(), ranks.tolist(), strict=True):
        if math.isfinite(row[label]):
            assert right(row, label, rank + 1)
            assert not right(row, label, rank)
        else:
            assert rank == len(row)
    with_jax = jax.jit(rank_of_label)(jnp.asarray(logits), jnp.asarray(labels))
    assert isinstance(with_jax, jax.Array)
    np.testing.assert_array_equal(with_jax, ranks)


def test_mean_per_class_leaves_out_classes_without_clips():
    scores = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], np.float64)  # always the first of three classes
    assert accuracies(scores, np.array([0, 0, 0, 1])) == {"top1": 0.75, "top5": 1.0, "mean_per_class": 0.5}


def test_mean_loss_of_many_clips_is_summed_in_float64():
    losses = np.full(100_000, 0.1, np.float32)
    losses[0] = 1e6  # in float32 the sum would lose the small ones
    heads = dict.fromkeys(HEADS["unimodal"], np.zeros((100_000, 2), np.float32))
    found = measure(FAMILIES["unimodal"], heads, np.zeros(100_000, np.int32), {"loss": losses})
    assert found["loss"] == pytest.approx((1e6 + 99_999 * float(np.float32(0.1))) / 100_000, rel=1e-12)
