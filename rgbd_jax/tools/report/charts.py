"""The figures of the report; hovering, zooming, menus, legends and colour scales are Plotly's own."""

import html
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from rgbd_jax.model import evaluation_schedule
from rgbd_jax.sampling import sample_frames
from rgbd_jax.tools.report.explanations import ClipExplanation
from rgbd_jax.tools.report.source import Source
from rgbd_jax.tools.report.summary import (
    BINS,
    HEAD_SUMS,
    HEAD_TITLES,
    Compared,
    Heads,
    Predictions,
    correct_patterns,
    ordered_heads,
)

BLUE, ORANGE, GREEN, RED, PURPLE, _, _, GREY, *_ = qualitative.D3
MAX_ROWS = 30  # classes of a chart with a row for each class, and of a confusion matrix that begins with its diagonal
MAX_LABELLED = 16  # classes of a confusion matrix with numbers in its cells
LAYOUT = {
    "template": "plotly_white",
    "colorway": qualitative.D3,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 8, "r": 14, "t": 8, "b": 8},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "modebar": {"bgcolor": "rgba(0,0,0,0)"},
    "hovermode": "closest",
}
RATES = {"range": [-0.03, 1.03], "tickformat": ".0%"}


def plain(name: str, limit: int = 30) -> str:
    """Returns a name, shortened, that Plotly takes neither as markup nor as a part of a template."""
    short = name if len(name) <= limit else name[: limit - 1] + "…"
    return html.escape(short, quote=False).replace("%{", "%&#123;")


def _figure(x: str = "", y: str = "", height: int = 320, **layout: Any) -> go.Figure:
    axis = {"automargin": True, "zeroline": False}
    figure = go.Figure(layout={**LAYOUT, "height": height, **layout})
    return figure.update_xaxes(title=x, **axis).update_yaxes(title=y, **axis)


def _name_rows(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    ticks = {"tickvals": list(range(len(names))), "ticktext": [plain(name) for name in names]}
    return figure.update_yaxes(**ticks, range=[len(names) - 0.5, -0.5], showgrid=False)


def _dots(x: str, names: Sequence[str], values: Mapping[str, Float[np.ndarray, "rows"]]) -> go.Figure:
    """Returns rates as dots, in a row for each name; those of a row are connected."""
    figure = _figure(x, height=110 + 24 * len(names), hovermode="y unified")
    rates = np.stack(list(values.values()))  # series rows
    ends = np.stack([np.fmin.reduce(rates), np.fmax.reduce(rates), np.full(len(names), np.nan)])  # NaN lifts the pen
    style = {"mode": "lines", "line": {"color": "lightgrey", "width": 3}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=ends.T.ravel(), y=np.repeat(range(len(names)), 3), **style)
    for number, name in enumerate(values):
        marker = {"size": 10, "color": qualitative.D3[number % 10], "symbol": number}
        dots = {"mode": "markers", "marker": marker, "hovertemplate": "%{x:.1%}"}
        figure.add_scatter(x=rates[number], y=list(range(len(names))), name=plain(name), **dots)
    return _name_rows(figure, names).update_xaxes(**RATES)


def _bars(x: str, bars: Sequence[tuple[str, float, str, str]]) -> go.Figure:
    """Returns a bar for each title, value, text and colour."""
    titles, values, texts, colours = zip(*bars, strict=True)
    figure = _figure(x, height=90 + 44 * len(bars))
    style: dict[str, Any] = {"orientation": "h", "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}
    figure.add_bar(x=values, y=list(range(len(bars))), text=texts, marker_color=colours, **style)
    return _name_rows(figure, titles).update_xaxes(range=[0, 1.35 * max(values)])


def _menu(x: float, method: str, choices: Iterable[tuple[str, Mapping[str, Any]]], **options: Any) -> dict[str, Any]:
    buttons = [{"method": method, "label": label, "args": [arguments]} for label, arguments in choices]
    return {"x": x, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "buttons": buttons, **options}


def confusion_chart(predictions: Predictions) -> go.Figure:
    """Returns the confusion matrix, with menus for its values, the order of the classes, and how many are shown."""
    counts, k = predictions.confusion, len(predictions.confusion)
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    many = k > MAX_ROWS  # the diagonal would outshine the errors
    names = np.array([f"{label} {plain(name, 24)}" for label, name in enumerate(predictions.class_names)])
    figure = _figure("predicted class", "true class", height=800)
    views = {"normalised by row": (rates, ".0%"), "number of clips": (counts, ".0f")}
    traces: list[tuple[str, dict]] = []
    for (title, (values, form)), errors_only in itertools.product(views.items(), (False, True)):
        shown = np.where(errors_only & np.eye(k, dtype=bool), np.nan, values).astype(np.float32)
        rate = "" if values is counts else ", %{z:.1%} of the class"
        hover = f"<b>%{{y}}</b><br>predicted as <b>%{{x}}</b><br>%{{customdata}} clips{rate}<extra></extra>"
        style: dict[str, Any] = {"xgap": 1, "ygap": 1} if k <= MAX_ROWS else {}
        if k <= MAX_LABELLED:
            text = [[format(value, form) if value > 0 else "" for value in row] for row in shown]
            style |= {"text": text, "texttemplate": "%{text}"}
        style |= {"colorbar": {"tickformat": form, "thickness": 10}, "visible": len(traces) == many}
        style |= {"hovertemplate": hover, "hoverongaps": False, "colorscale": "Blues"}
        figure.add_heatmap(z=shown, x=names, y=names, customdata=counts.astype(np.int32), **style)
        visible = [number == len(traces) for number in range(2 * len(views))]
        traces.append((f"{title}, errors only" if errors_only else title, {"visible": visible}))
    orders = {
        "in label order": names,
        "lowest accuracy first": names[predictions.worst_classes()],
        "most clips first": names[np.argsort(-counts.sum(1), kind="stable")],
    }
    arrays = ("xaxis.categoryarray", "yaxis.categoryarray")
    ranges = {f"all {k} classes": k, **{f"first {n} classes": n for n in (10, 25, 50, 100) if n < k}}
    axes = [(title, {"xaxis.range": [-0.5, n - 0.5], "yaxis.range": [n - 0.5, -0.5]}) for title, n in ranges.items()]
    menus = [
        _menu(0, "restyle", traces, active=int(many)),
        _menu(0.38, "relayout", [(x, dict.fromkeys(arrays, orders[x].tolist())) for x in orders], active=int(many)),
        _menu(0.7, "relayout", axes),
    ]
    order = list(orders.values())[many]
    figure.update_xaxes(categoryarray=order, constrain="domain", tickangle=-60)
    return figure.update_yaxes(categoryarray=order, range=[k - 0.5, -0.5]).update_layout(updatemenus=menus)


def class_charts(predictions: Predictions) -> tuple[go.Figure, go.Figure]:
    """Returns accuracy against precision of all classes, and both for the classes with the lowest accuracy."""
    clips, names = predictions.confusion.sum(1), predictions.class_names
    accuracy, precision = predictions.accuracy, predictions.precision
    shown = np.flatnonzero((clips > 0) & ~np.isnan(precision))
    scatter = _figure("accuracy (recall)", "precision", height=420, showlegend=False)
    scatter.add_scatter(
        x=accuracy[shown],
        y=precision[shown],
        mode="markers",
        text=[f"{plain(names[label])}, {clips[label]} clips" for label in shown],
        hovertemplate="%{text}<br>accuracy %{x:.1%}, precision %{y:.1%}<extra></extra>",
        marker={"color": BLUE, "opacity": 0.7, "size": 6 + 12 * np.sqrt(clips[shown] / clips.max())},
    )
    worst = predictions.worst_classes()[: (clips > 0).sum()][:MAX_ROWS]
    rates = {"accuracy": accuracy[worst], "precision": precision[worst]}
    return _with_diagonal(scatter), _dots("fraction of the clips", names[worst].tolist(), rates)


def calibration_charts(predictions: Predictions) -> tuple[go.Figure, go.Figure]:
    """Returns the reliability diagram, and the number of correct and incorrect clips by confidence."""
    clips, correct, confidence = predictions.calibration()
    bars: dict[str, Any] = {"x": (np.arange(BINS) + 0.5) / BINS, "width": 0.9 / BINS}
    reliability = _figure("confidence", "top-1 accuracy", showlegend=False)
    details = np.stack([clips, confidence / np.maximum(clips, 1)], 1)  # bins 2
    hover = "accuracy %{y:.1%}, mean confidence %{customdata[1]:.1%}<br>%{customdata[0]} clips<extra></extra>"
    accuracy = np.where(clips, correct / np.maximum(clips, 1), np.nan)
    reliability.add_bar(y=accuracy, customdata=details, hovertemplate=hover, marker_color=BLUE, **bars)
    histogram = _figure("confidence", "clips", barmode="stack", hovermode="x unified").update_xaxes(**RATES)
    for title, values, colour in (("incorrect", clips - correct, RED), ("correct", correct, GREEN)):
        histogram.add_bar(y=values, name=title, marker_color=colour, hovertemplate="%{y}", **bars)
    return _with_diagonal(reliability), histogram


def _with_diagonal(figure: go.Figure) -> go.Figure:
    figure.add_shape(type="line", x0=0, x1=1, y0=0, y1=1, line={"color": GREY, "dash": "dot", "width": 1})
    return figure.update_xaxes(**RATES).update_yaxes(**RATES)


def training_charts(source: Source) -> dict[str, go.Figure]:
    """Returns the curves of a training that were recorded, by epoch, or by step if its length is unknown."""
    if source.curves is None or source.config is None:
        return {}
    scale, unit = source.steps_per_epoch or 1.0, "epoch" if source.steps_per_epoch else "step"
    curves = {f"{kind} {name}": curve for kind, metrics in source.curves.items() for name, curve in metrics.items()}
    if source.steps_per_epoch and "train loss" in curves:
        epochs = range(math.ceil(curves["train loss"][0][-1] / scale))
        temperatures = [float(evaluation_schedule(source.config, epoch).temperature) for epoch in epochs]
        if any(temperature != 1 for temperature in temperatures):
            curves["temperature"] = [int(epoch * scale) for epoch in epochs], temperatures
    terms = {"loss": "solid", "cross_entropy": "dot"}
    kinds = {"train": ORANGE, "validation": BLUE}
    lines: dict[str, dict[str, dict[str, Any]]] = {
        "loss": {f"{kind} {name}": {"color": kinds[kind], "dash": terms[name]} for kind in kinds for name in terms},
        "accuracy": {
            "train top1": {"color": ORANGE, "width": 1},
            "validation top1": {"color": BLUE, "width": 3},
            "validation top5": {"color": GREY, "width": 1},
            **{name: {"width": 1} for name in curves if name.startswith("validation top1_")},
        },
        "learning_rate": {"train learning_rate": {"color": BLUE}},
        "temperature": {"temperature": {"color": GREEN, "shape": "hv"}},
        "gradient_norm": {"train gradient_norm": {"color": PURPLE}},
    }
    titles = {
        f"validation {metric}": " + ".join(HEAD_TITLES[head] for head in sums) for metric, sums in HEAD_SUMS.items()
    }
    titles |= {f"{kind} top{k}": f"{kind} top-{k}" for kind in source.curves for k in (1, 5)}
    titles |= {f"validation top1_{head}": title for head, title in HEAD_TITLES.items()}
    figures = {}
    for title, styles in lines.items():
        many = len(styles) > 1
        figure = _figure(unit, height=340 if many else 240, showlegend=many, hovermode="x unified")
        form, axis = ("%{y:.1%}", RATES) if title == "accuracy" else ("%{y:.4g}", {"rangemode": "tozero"})
        for name in filter(curves.__contains__, styles):
            steps, values = curves[name]
            options = {"line": styles[name], "hovertemplate": form, "name": titles.get(name, name.replace("_", " "))}
            mode = "lines+markers" if len(steps) == 1 else "lines"
            figure.add_scatter(x=[step / scale for step in steps], y=values, mode=mode, **options)
        if figure.data:
            figures[title] = figure.update_yaxes(**axis)
    dashed = {"line": {"color": GREY, "dash": "dash", "width": 1}}
    for figure in figures.values():
        if source.metadata and source.metadata.history:
            figure.add_vline(x=source.metadata.history[-1]["step"] / scale, **dashed)
    if source.config.optimizer.gradient_clip and "gradient_norm" in figures:
        figures["gradient_norm"].add_hline(y=source.config.optimizer.gradient_clip, **dashed)
    return figures


def weights_chart(clips: Sequence[ClipExplanation], titles: Sequence[str], modality: str) -> go.Figure | None:
    """Returns the weights of the clips' frames over time and their mean; None for a network without such weights."""
    figure = _figure("frame of the input", "mean weight of the channels").update_yaxes(rangemode="tozero")
    for number, kind in enumerate(clips[0].modalities[modality].weights):
        weights = np.stack([clip.modalities[modality].weights[kind] for clip in clips])  # clips t
        thin = {"line": {"color": GREY, "width": 1}, "opacity": 0.45, "showlegend": False}
        thick = {"line": {"color": qualitative.D3[number], "width": 3}}
        names = [*(plain(title, 60) for title in titles), f"{kind}, mean of these clips"]
        for values, name in zip([*weights, weights.mean(0)], names, strict=True):
            hover = f"frame %{{x}}: %{{y:.3f}}<extra>{name}</extra>"
            style = {"mode": "lines", "name": name, "hovertemplate": hover, **(thick if name is names[-1] else thin)}
            figure.add_scatter(x=np.arange(1, len(values) + 1), y=values, **style)
    return figure if figure.data else None


def attention_chart(clips: Sequence[ClipExplanation], titles: Sequence[str], modality: str) -> go.Figure | None:
    """Returns each attention matrix, and its class token's row over the frames; a menu chooses the clip."""
    explained = [clip.modalities[modality] for clip in clips]
    columns = list(explained[0].attention)
    if not columns:
        return None
    figure = make_subplots(
        rows=2,
        cols=len(columns),
        specs=[[{}] * len(columns), [{"colspan": len(columns)}] + [None] * (len(columns) - 1)],
        subplot_titles=[*columns, "attention of the class tokens"],
        vertical_spacing=0.16,
    )
    choices: list[tuple[list, list]] = [([], []) for _ in range(len(clips) + 1)]  # z and y of the mean and each clip
    for column, title in enumerate(columns, 1):
        maps = np.stack([each.attention[title] for each in explained])  # clips n+1 n+1
        maps = np.concatenate([maps.mean(0, keepdims=True), maps]).round(4)
        frames = sample_frames(len(explained[0].frames), maps.shape[1] - 1, None) + 1
        names = ["class", *map(str, frames)]
        for (z, y), values in zip(choices, maps, strict=True):
            z += [values.tolist(), None]  # heat maps and lines take turns
            y += [names, values[0, 1:].tolist()]
        hover = "token %{y} attends to %{x}: %{z:.1%}<extra></extra>"
        style = {"colorscale": "Blues", "showscale": False, "zmin": 0, "hovertemplate": hover}
        figure.add_heatmap(z=maps[0], x=names, y=names, row=1, col=column, **style)
        style = {"name": title, "mode": "lines+markers", "hovertemplate": "frame %{x}: %{y:.1%}"}
        figure.add_scatter(x=frames, y=maps[0, 0, 1:], row=2, col=1, **style)
    figure.update_xaxes(type="category", title="attends to", row=1).update_xaxes(title="frame of the input", row=2)
    figure.update_yaxes(type="category", autorange="reversed", row=1).update_yaxes(tickformat=".0%", row=2)
    names = [f"mean of all {len(clips)} clips", *(plain(title, 70) for title in titles)]
    choice = [(name, {"z": z, "y": y}) for name, (z, y) in zip(names, choices, strict=True)]
    menus = [_menu(0, "restyle", choice, y=1.08)]
    legend = {"orientation": "h", "y": -0.12, "yanchor": "top"}
    return figure.update_layout({**LAYOUT, "height": 720, "margin": {"t": 80}, "legend": legend, "updatemenus": menus})


def head_chart(heads: Heads, values: Float[np.ndarray, "h h"], form: str) -> go.Figure:
    """Returns a matrix with a value for every two heads."""
    names = list(ordered_heads(heads).values())
    style = {"colorscale": "Blues", "zmin": min(float(np.nanmin(values)), 0.9), "zmax": 1, "showscale": False}
    texts = {"texttemplate": f"%{{z:{form}}}", "hovertemplate": f"%{{y}} and %{{x}}: %{{z:{form}}}<extra></extra>"}
    figure = _figure(height=360).add_heatmap(z=values, x=names, y=names, xgap=2, ygap=2, **style, **texts)
    return figure.update_yaxes(autorange="reversed")


def comparison_charts(rows: Sequence[Compared], predictions: Predictions) -> Iterator[go.Figure]:
    """Yields the accuracies of runs, heads and late fusion; of several runs also what sets them apart."""
    colours = {"run": BLUE, "head": GREEN, "late fusion": ORANGE}
    top1 = [(row.name, row.top1, f"{row.top1:.1%}", colours[row.kind]) for row in rows]
    yield _bars("top-1 accuracy", top1).update_xaxes(tickformat=".0%")
    runs = [row for row in rows if row.kind == "run"]
    if len(runs) < 2:
        return
    patterns = [
        (title, clips, f"{clips} ({clips / len(predictions.labels):.1%})", RED if title == "none" else BLUE)
        for title, clips in correct_patterns(runs)[:MAX_ROWS]
    ]
    yield _bars("clips", patterns)
    rates = np.stack([run.class_accuracy for run in runs])  # r k
    spread = np.nan_to_num(rates.max(0) - rates.min(0))
    shown = np.argsort(-spread, kind="stable")[: min((spread > 0).sum(), MAX_ROWS)]
    names = predictions.class_names[shown].tolist()
    yield _dots("accuracy of the class", names, {run.name: run.class_accuracy[shown] for run in runs})
