"""Figures of several runs beside each other."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from rgbd_jax.tools.report.chart import COLOURS, Chart, new_figure, shortened
from rgbd_jax.tools.report.comparison import Comparison

MOST_CLASSES = 20
MOST_PATTERNS = 16


def comparison_charts(
    comparison: Comparison, by_class: Mapping[str, Float[np.ndarray, "k"]], class_names: Sequence[str]
) -> list[Chart]:
    """Returns the figures of a comparison.

    Args:
        comparison: runs, heads and sums.
        by_class: accuracy of each class by name of a run.
        class_names: of the classes.
    """
    rows = comparison.rows
    top1 = new_figure(x="top-1", hovermode="closest")
    colours = {"run": COLOURS[0], "head": COLOURS[2], "sum": COLOURS[1]}
    top1.add_bar(
        x=[row.top1 for row in rows], y=list(range(len(rows))), orientation="h", width=0.62,
        marker_color=[colours[row.kind] for row in rows], text=[f"{row.top1:.1%}" for row in rows],
        textposition="outside", cliponaxis=False, hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    top1.update_xaxes(range=[0, 1.5], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    top1.update_yaxes(
        tickmode="array", tickvals=list(range(len(rows))), ticktext=[shortened(row.name, 30) for row in rows],
        range=[len(rows) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    charts = [
        Chart(
            "chart-compare", "Top-1", top1, "; ".join(f"{row.name} {row.top1:.1%}" for row in rows) + ".",
            "Blue: runs. Green: heads of a fusion network. Orange: the runs' probabilities summed, with equal weights, "
            "without training.",
            height=90 + 44 * len(rows),
        )
    ]  # fmt: skip
    names = [row.name for row in comparison.runs]
    if len(names) > 1:
        charts += [_patterns(comparison, names), _differences(by_class, names, class_names)]
    return charts


def pattern_name(pattern: Sequence[bool], names: Sequence[str]) -> str:
    """Returns in words which runs recognise a clip."""
    right = [name for name, is_right in zip(names, pattern, strict=True) if is_right]
    if len(right) == len(names):
        return "both" if len(names) == 2 else "all runs"
    return f"only {' and '.join(right)}" if right else "none"


def _patterns(comparison: Comparison, names: Sequence[str]) -> Chart:
    shown = comparison.patterns[:MOST_PATTERNS]
    total = sum(count for _, count in comparison.patterns)
    rows = [pattern_name(pattern, names) for pattern, _ in shown]
    figure = new_figure(x="clips", hovermode="closest")
    figure.add_bar(
        x=[count for _, count in shown], y=list(range(len(rows))), orientation="h", width=0.62,
        marker_color=[COLOURS[0] if any(pattern) else "var(--wrong)" for pattern, _ in shown],
        text=[f"{count} ({count / total:.1%})" for _, count in shown], textposition="auto",
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(
        tickmode="array", tickvals=list(range(len(rows))), ticktext=[shortened(row, 30) for row in rows],
        range=[len(rows) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    return Chart(
        "chart-patterns", "Who recognises a clip", figure,
        "; ".join(f"{row}: {count}" for row, (_, count) in zip(rows, shown, strict=True)) + " clips.",
        f"At least one run recognises {comparison.any_right:.1%} of the clips: no choice among their answers can be "
        "better than that.",
        height=90 + 44 * len(rows),
    )  # fmt: skip


def _differences(
    by_class: Mapping[str, Float[np.ndarray, "k"]], names: Sequence[str], class_names: Sequence[str]
) -> Chart:
    values = np.stack([by_class[name] for name in names])  # r k
    spread = np.nan_to_num(values.max(0) - values.min(0), nan=-1.0)
    chosen = np.argsort(-spread, kind="stable")[:MOST_CLASSES]
    chosen = chosen[spread[chosen] > 0]
    places = list(range(len(chosen)))
    figure = new_figure(x="accuracy of the class", hovermode="y")
    for place, label in enumerate(chosen):
        figure.add_shape(
            type="line", x0=values[:, label].min(), x1=values[:, label].max(), y0=place, y1=place,
            line={"color": "var(--line)", "width": 3}, layer="below",
        )  # fmt: skip
    for number, name in enumerate(names):
        figure.add_scatter(
            x=values[number, chosen], y=places, mode="markers", name=shortened(name, 30), hovertemplate="%{x:.1%}",
            marker={"size": 10, "color": COLOURS[number % len(COLOURS)]},
        )  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(
        tickmode="array", tickvals=places, ticktext=[shortened(class_names[label], 30) for label in chosen],
        range=[len(chosen) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    return Chart(
        "chart-differences", "Classes where they differ most", figure,
        f"Accuracy of {len(chosen)} classes by run; the table below has all of them.",
        "Classes far apart are where a fusion has most to win.",
        height=120 + 26 * max(len(chosen), 2),
    )  # fmt: skip
