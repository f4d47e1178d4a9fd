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

ONE_STREAM = ("logits", "small", "medium", "large")
FUSION = ("logits", "rgb", "depth")
# Few values, so that scores often tie; their sums are exact.
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf])


def metrics_of(heads, labels, losses=()):
    return measure(FAMILIES["fusion" if "rgb" in heads else "unimodal"], heads, labels, dict(losses))


@st.composite
def scored(draw, heads):
    clips, classes = draw(st.integers(1, 8)), draw(st.integers(1, 7))
    logits = {
        head: np.array(
            draw(st.lists(st.lists(VALUES, min_size=classes, max_size=classes), min_size=clips, max_size=clips)),
            np.float32,
        )
        for head in heads
    }
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=clips, max_size=clips))
    return logits, np.array(labels, np.int32)


def classes_in_order(row):
    """Classes from the highest score to the lowest; of equals the first, what is not a number before all."""
    return sorted(range(len(row)), key=lambda c: (-math.inf if math.isnan(row[c]) else -row[c], c))


def right(row, label, k=1):
    """Whether the label is among the first k."""
    if not math.isfinite(row[label]):
        return False
    numbers = [c for c in range(len(row)) if math.isnan(row[c])]
    order = numbers + [c for c in classes_in_order(row) if c not in numbers]
    return label in order[:k]


def fraction(rows, labels, k=1):
    return sum(right(row, label, k) for row, label in zip(rows, labels, strict=True)) / len(labels)


def per_class(rows, labels):
    fractions = []
    for label in set(labels):
        mine = [row for row, other in zip(rows, labels, strict=True) if other == label]
        fractions.append(sum(right(row, label) for row in mine) / len(mine))
    return sum(fractions) / len(fractions)


def summed(heads, *names):
    clips, classes = heads[names[0]].shape
    return [[sum(float(heads[name][i, c]) for name in names) for c in range(classes)] for i in range(clips)]


@settings(deadline=None)
@given(scored(ONE_STREAM), st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8))
def test_one_stream_equals_loops(case, losses):
    heads, labels = case
    losses = np.array(losses[: len(labels)], np.float32)
    expected = {
        "loss": sum(map(float, losses)) / len(labels),
        "top1": fraction(summed(heads, "logits"), labels.tolist()),
        "top5": fraction(summed(heads, "logits"), labels.tolist(), 5),
        "mean_per_class": per_class(summed(heads, "logits"), labels.tolist()),
        **{f"top1_{head}": fraction(summed(heads, head), labels.tolist()) for head in ONE_STREAM[1:]},
        "reference_protocol": max(
            fraction(summed(heads, *names), labels.tolist())
            for names in (["large"], ["logits", "small"], ["logits", "medium"], ["medium", "small"])
        ),
    }
    found = metrics_of(heads, labels, {"loss": losses})
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(scored(FUSION))
def test_fusion_equals_loops(case):
    heads, labels = case
    expected = {
        "top1": fraction(summed(heads, "logits"), labels.tolist()),
        "top5": fraction(summed(heads, "logits"), labels.tolist(), 5),
        "mean_per_class": per_class(summed(heads, "logits"), labels.tolist()),
        "top1_rgb": fraction(summed(heads, "rgb"), labels.tolist()),
        "top1_depth": fraction(summed(heads, "depth"), labels.tolist()),
        "top1_rgb_depth": fraction(summed(heads, "rgb", "depth"), labels.tolist()),
        "top1_all": fraction(summed(heads, "rgb", "depth", "logits"), labels.tolist()),
    }
    expected["reference_protocol"] = max(expected[name] for name in ("top1", "top1_rgb_depth", "top1_all"))
    assert metrics_of(heads, labels) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)  # JAX compiles for every shape
@given(scored(("logits",)))
def test_rank_is_the_place_in_the_order_with_jax_and_numpy(case):
    heads, labels = case
    logits = heads["logits"]
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
    heads = dict.fromkeys(ONE_STREAM, np.zeros((100_000, 2), np.float32))
    found = metrics_of(heads, np.zeros(100_000, np.int32), {"loss": losses})
    assert found["loss"] == pytest.approx((1e6 + 99_999 * float(np.float32(0.1))) / 100_000, rel=1e-12)
