"""Figures of the classes and of the network's confidence."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rgbd_jax.tools.report.chart import COLOURS, MUTED, RARE_HEAT, RIGHT, WRONG, Chart, new_figure, plain, shortened
from rgbd_jax.tools.report.classes import ClassFigures, orders
from rgbd_jax.tools.report.confidence import BINS, Answers, calibration_error, histogram

MOST_NAMED = 30  # classes that the chart by class names, those that are recognised least


def confusion_chart(counts: Int[np.ndarray, "k k"], names: Sequence[str]) -> Chart:
    """Returns the confusion matrix; the page's script orders, normalises and labels it.

    Args:
        counts: number of clips by true (row) and predicted class (column).
        names: of the classes.
    """
    figure = new_figure(x="predicted class", y="true class")
    shares = np.round(counts / np.maximum(counts.sum(1, keepdims=True), 1), 4)
    figure.add_heatmap(z=shares, colorscale=RARE_HEAT, zmin=0, zmax=1, hovertemplate="%{hovertext}<extra></extra>")
    figure.update_yaxes(autorange="reversed")
    errors = int(counts.sum() - np.trace(counts))
    return Chart(
        "chart-confusion", "Confusion matrix", figure,
        f"Confusion matrix of {len(counts)} classes: {errors} of {int(counts.sum())} clips lie off the diagonal. The "
        "tables of confused pairs and of the classes give the same figures.",
        "A row is a true class, a column what its clips were taken for; a row's shares sum to 100 %. Drag to zoom, "
        "double-click to see all again.",
        height=760, square=True,
        extra={"counts": counts.tolist(), "names": [plain(name) for name in names], "orders": orders(counts)},
    )  # fmt: skip


def class_chart(figures: ClassFigures, names: Sequence[str]) -> Chart:
    """Returns accuracy and precision of the classes that are recognised least."""
    there = np.flatnonzero(figures.clips > 0)
    worst = there[np.argsort(figures.accuracy[there], kind="stable")][:MOST_NAMED]
    rows = [shortened(names[label]) for label in worst]
    places = list(range(len(worst)))
    figure = new_figure(x="share", hovermode="y")
    for place, label in enumerate(worst):
        figure.add_shape(
            type="line", x0=figures.accuracy[label], x1=np.nan_to_num(figures.precision[label]), y0=place, y1=place,
            line={"color": "var(--line)", "width": 3}, layer="below",
        )  # fmt: skip
    for title, values, colour, symbol in (
        ("accuracy", figures.accuracy, COLOURS[0], "circle"),
        ("precision", figures.precision, COLOURS[1], "diamond"),
    ):
        figure.add_scatter(
            x=values[worst], y=places, mode="markers", name=title, hovertemplate="%{x:.1%}",
            marker={"color": colour, "symbol": symbol, "size": 10},
        )  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(
        tickmode="array", tickvals=places, ticktext=rows, range=[len(worst) - 0.5, -0.5], showgrid=False
    )
    few = len(there) > MOST_NAMED
    return Chart(
        "chart-classes", f"The {len(worst)} classes recognised least" if few else "Classes, the worst first", figure,
        f"Accuracy and precision of {len(worst)} classes; the table below has all of them.",
        "Accuracy: share of the clips of the class that are recognised. Precision: share of the clips taken for the "
        "class that are of it. Precision far below accuracy: the network says this class too often.",
        height=110 + 24 * len(worst),
    )  # fmt: skip


def scatter_chart(figures: ClassFigures, names: Sequence[str]) -> Chart:
    """Returns accuracy against precision of all classes."""
    shown = np.flatnonzero((figures.clips > 0) & (figures.predicted > 0))
    clips = figures.clips[shown]
    figure = new_figure(x="accuracy", y="precision")
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": MUTED, "dash": "dot", "width": 1},
                       hoverinfo="skip")  # fmt: skip
    figure.add_scatter(
        x=figures.accuracy[shown], y=figures.precision[shown], mode="markers",
        text=[f"{shortened(names[int(label)], 40)}, {figures.clips[label]} clips" for label in shown],
        hovertemplate="%{text}<br>accuracy %{x:.1%}, precision %{y:.1%}<extra></extra>",
        marker={
            "color": COLOURS[0], "opacity": 0.7, "size": (6 + 12 * np.sqrt(clips / clips.max())) if len(clips) else 8,
            "line": {"width": 1, "color": "var(--card)"},
        },
    )  # fmt: skip
    figure.update_layout(showlegend=False)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(range=[-0.04, 1.04], tickformat=".0%")
    return Chart(
        "chart-scatter", "Accuracy against precision", figure,
        f"Accuracy against precision of {len(shown)} classes.",
        "A dot a class, its area the number of clips. Below the diagonal: said too often; above it: said too rarely.",
        height=420,
    )  # fmt: skip


def confidence_chart(answers: Answers) -> Chart:
    """Returns how many clips are right and wrong at every confidence."""
    right, wrong = histogram(answers)
    figure = new_figure(x="probability of the predicted class", y="clips", barmode="stack", hovermode="x unified")
    centres = (np.arange(BINS) + 0.5) / BINS
    for title, values, colour in (("wrong", wrong, WRONG), ("right", right, RIGHT)):
        figure.add_bar(x=centres, y=values, name=title, width=0.9 / BINS, marker_color=colour,
                       hovertemplate="%{y}")  # fmt: skip
    figure.update_xaxes(range=[0, 1], tickformat=".0%", hoverformat=".0%")
    sure = int(((answers.confidence >= 0.9) & ~answers.right).sum())
    return Chart(
        "chart-confidence", "How sure it is", figure,
        f"Right and wrong clips by the probability of the predicted class; {sure} errors have at least 90 %.",
        f"Expected calibration error {calibration_error(answers):.1%}: so far are confidence and accuracy apart, on "
        "average over ten intervals. 0 % would mean that of the clips with 70 % confidence 70 % are right.",
        height=420,
    )  # fmt: skip
