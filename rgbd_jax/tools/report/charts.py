"""The figures of the report; hovering, zooming, menus, legends and colour scales are Plotly's own."""

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from jaxtyping import Float
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from rgbd_jax.model import evaluation_schedule
from rgbd_jax.sampling import sample_frames
from rgbd_jax.tools.report.source import Source
from rgbd_jax.tools.report.summary import BINS, METRIC_TITLES, Predictions, correct_patterns

BLUE, ORANGE, GREEN, RED, _, _, _, GREY, *_ = COLOURS = qualitative.D3
MAX_ROWS = 30  # classes of a chart with a row for each class, and of a confusion matrix that begins with its diagonal
MAX_LABELLED = 16  # classes of a confusion matrix with numbers in its cells
RATES = {"range": [-0.03, 1.03], "tickformat": ".0%"}
DASHED = {"color": GREY, "dash": "dash", "width": 1}
TEMPLATE = go.layout.Template(plotly.io.templates["plotly_white"])
TEMPLATE.layout.update(
    colorway=COLOURS,
    paper_bgcolor="rgba(0,0,0,0)",
    plot_bgcolor="rgba(0,0,0,0)",
    margin={"l": 8, "r": 14, "t": 8, "b": 8},
    legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    modebar={"bgcolor": "rgba(0,0,0,0)", "orientation": "v"},  # a row would cover menus
    xaxis_zeroline=False,
    yaxis_zeroline=False,
)
TEMPLATE.data.heatmap = [{"colorscale": "Blues"}]
# Of the training: chart -> metrics, the first as a solid line, the second dotted.
CURVES = {
    "loss": ("loss", "cross_entropy"),
    "accuracy": ("top1", "top5"),
    "learning_rate": ("learning_rate",),
    "temperature": ("temperature",),
    "gradient_norm": ("gradient_norm",),
}


def plain(name: str, limit: int = 30) -> str:
    """Returns a name, shortened, that Plotly takes neither as markup nor as a part of a template."""
    short = name if len(name) <= limit else name[: limit - 1] + "…"
    return html.escape(short, quote=False).replace("%{", "%&#123;")


def _figure(x: str = "", y: str = "", height: int = 320, **layout: Any) -> go.Figure:
    return go.Figure(layout=go.Layout(template=TEMPLATE, xaxis_title=x, yaxis_title=y, height=height, **layout))


def _rows(x: str, names: Sequence[str], height: int) -> go.Figure:
    ticks = {"tickvals": list(range(len(names))), "ticktext": [plain(name) for name in names], "showgrid": False}
    return _figure(x, height=100 + height * len(names)).update_yaxes(range=[len(names) - 0.5, -0.5], **ticks)


def _dots(x: str, names: Sequence[str], values: Mapping[str, Float[np.ndarray, "rows"]]) -> go.Figure:
    """Returns rates as dots, in a row for each name; those of a row are connected."""
    figure, rows = _rows(x, names, 24).update_xaxes(**RATES).update_layout(hovermode="y unified"), np.arange(len(names))
    rates = np.stack(list(values.values()))  # series rows
    ends = np.stack([np.fmin.reduce(rates), np.fmax.reduce(rates), np.full(len(names), np.nan)])  # NaN lifts the pen
    style = {"mode": "lines", "line": {"color": "lightgrey", "width": 3}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=ends.T.ravel(), y=rows.repeat(3), **style)
    for number, name in enumerate(values):
        marker = {"size": 10, "symbol": number, "color": COLOURS[number % len(COLOURS)]}
        dots = {"mode": "markers", "marker": marker, "hovertemplate": "%{x:.1%}"}
        figure.add_scatter(x=rates[number], y=rows, name=plain(name), **dots)
    return figure


def _bars(x: str, bars: Sequence[tuple[str, float, str, str]]) -> go.Figure:
    titles, values, texts, colours = zip(*bars, strict=True)
    style: dict[str, Any] = {"orientation": "h", "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}
    figure = _rows(x, titles, 40).update_xaxes(range=[0, 1.35 * max(values)])
    return figure.add_bar(x=values, y=np.arange(len(bars)), text=texts, marker_color=colours, **style)


def _menu(x: float, method: str, buttons: Sequence[tuple[str, Mapping[str, Any]]], **options: Any) -> dict[str, Any]:
    choices = [{"method": method, "label": label, "args": [arguments]} for label, arguments in buttons]
    return {"x": x, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "buttons": choices, **options}


def _choice(figure: go.Figure, titles: Sequence[str], active: int = 0, **options: Any) -> dict[str, Any]:
    """Returns a menu that shows equal parts of the figure's traces in turn; shows the active one."""
    part = np.arange(len(figure.data)) * len(titles) // len(figure.data)
    for trace, number in zip(figure.data, part, strict=True):
        trace.visible = bool(number == active)
    buttons = [(title, {"visible": (part == number).tolist()}) for number, title in enumerate(titles)]
    return _menu(0, "restyle", buttons, active=active, **options)


def confusion_chart(predictions: Predictions) -> go.Figure:
    """Returns the confusion matrix, with menus for its values, the order of the classes, and how many are shown."""
    counts, k = predictions.confusion, len(predictions.confusion)
    rates = counts / np.maximum(predictions.clips[:, None], 1)
    many = k > MAX_ROWS  # the diagonal would outshine the errors
    names = np.array([f"{label} {plain(name, 24)}" for label, name in enumerate(predictions.class_names)])
    figure, titles = _figure("predicted class", "true class", height=800), []
    views = (("normalised by row", rates, ".0%", ", %{z:.1%} of the class"), ("number of clips", counts, ".0f", ""))
    for (title, values, form, rate), errors_only in itertools.product(views, (False, True)):
        shown = np.where(errors_only & np.eye(k, dtype=bool), 0, values).astype(np.float32)
        figure.add_heatmap(
            z=np.where(shown > 0, shown, np.nan),
            x=names,
            y=names,
            customdata=counts.astype(np.int32),
            zmin=0,
            zmax=shown.max() or 1,
            texttemplate=f"%{{z:{form}}}" if k <= MAX_LABELLED else None,
            hovertemplate=f"<b>%{{y}}</b><br>predicted as <b>%{{x}}</b><br>%{{customdata}} clips{rate}<extra></extra>",
            hoverongaps=False,
            colorbar={"tickformat": form, "thickness": 10},
        )
        titles.append(f"{title}, errors only" if errors_only else title)
    orders = {
        "in label order": names,
        "lowest accuracy first": names[predictions.worst_classes()],
        "most clips first": names[np.argsort(-predictions.clips, kind="stable")],
    }
    arrays = [
        (title, {"xaxis.categoryarray": order.tolist(), "yaxis.categoryarray": order.tolist()})
        for title, order in orders.items()
    ]
    ranges = {f"all {k} classes": k, **{f"first {n} classes": n for n in (10, 25, 50, 100) if n < k}}
    axes = [(title, {"xaxis.range": [-0.5, n - 0.5], "yaxis.range": [n - 0.5, -0.5]}) for title, n in ranges.items()]
    menus = [
        _choice(figure, titles, active=int(many)),
        _menu(0.38, "relayout", arrays, active=int(many)),
        _menu(0.7, "relayout", axes),
    ]
    order = list(orders.values())[many]
    figure.update_xaxes(categoryarray=order, showgrid=False, constrain="domain", tickangle=-60)
    figure.update_yaxes(categoryarray=order, showgrid=False, range=[k - 0.5, -0.5])
    return figure.update_layout(updatemenus=menus)


def class_charts(predictions: Predictions) -> tuple[go.Figure, go.Figure]:
    """Returns accuracy against precision of all classes, and both for the classes with the lowest accuracy."""
    clips, names = predictions.clips, predictions.class_names
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
    details = np.stack([clips, confidence / np.maximum(clips, 1)], 1)  # bins 2
    hover = "accuracy %{y:.1%}, mean confidence %{customdata[1]:.1%}<br>%{customdata[0]} clips<extra></extra>"
    accuracy = np.where(clips, correct / np.maximum(clips, 1), np.nan)
    reliability = _figure("confidence", "top-1 accuracy", showlegend=False)
    reliability.add_bar(y=accuracy, customdata=details, hovertemplate=hover, marker_color=BLUE, **bars)
    histogram = _figure("confidence", "clips", barmode="stack", hovermode="x unified").update_xaxes(**RATES)
    for title, values, colour in (("incorrect", clips - correct, RED), ("correct", correct, GREEN)):
        histogram.add_bar(y=values, name=title, marker_color=colour, hovertemplate="%{y}", **bars)
    return _with_diagonal(reliability), histogram


def _with_diagonal(figure: go.Figure) -> go.Figure:
    figure.add_shape(type="line", x0=0, x1=1, y0=0, y1=1, line={**DASHED, "dash": "dot"})
    return figure.update_xaxes(**RATES).update_yaxes(**RATES)


def training_charts(source: Source) -> dict[str, go.Figure]:
    """Returns the curves of a training that were recorded, by epoch, or by step if its length is unknown."""
    if source.config is None:
        return {}
    scale, unit = source.steps_per_epoch or 1.0, "epoch" if source.steps_per_epoch else "step"
    curves, figures = dict(source.curves), {}
    if source.steps_per_epoch and "train loss" in curves:
        starts = np.arange(0, curves["train loss"][0][-1], scale)  # of the epochs, in steps
        temperatures = [float(evaluation_schedule(source.config, epoch).temperature) for epoch in range(len(starts))]
        if set(temperatures) != {1}:
            curves["train temperature"] = starts.tolist(), temperatures
    for chart, metrics in CURVES.items():
        lines = {
            f"{kind} {metric}": {"color": colour, "dash": dash}
            for metric, dash in zip(metrics, ("solid", "dot"), strict=False)
            for kind, colour in (("train", ORANGE), ("validation", BLUE))
        }
        if chart == "accuracy":
            lines |= {f"validation {metric}": {"width": 1} for metric in METRIC_TITLES}
        figure = _figure(unit, height=340 if len(metrics) > 1 else 240, hovermode="x unified")
        form, axis = ("%{y:.1%}", RATES) if chart == "accuracy" else ("%{y:.4g}", {"rangemode": "tozero"})
        for name in filter(curves.__contains__, lines):
            steps, values = curves[name]
            title = METRIC_TITLES.get(name.removeprefix("validation "), name.replace("_", " ").replace("top", "top-"))
            style = {"mode": "lines+markers" if len(steps) == 1 else "lines", "line": lines[name], "name": title}
            figure.add_scatter(x=np.divide(steps, scale), y=values, hovertemplate=form, **style)
        if figure.data:
            figures[chart] = figure.update_yaxes(**axis)
    for figure in figures.values():
        if source.metadata and source.metadata.history:
            figure.add_vline(x=source.metadata.history[-1]["step"] / scale, line=DASHED)
    if source.config.optimizer.gradient_clip and "gradient_norm" in figures:
        figures["gradient_norm"].add_hline(y=source.config.optimizer.gradient_clip, line=DASHED)
    return figures


def weights_chart(weights: Mapping[str, Float[np.ndarray, "n t"]], titles: Sequence[str]) -> go.Figure:
    """Returns the weights of the clips' frames over time and their mean, by kind."""
    figure = _figure("frame of the input", "mean weight of the channels").update_yaxes(rangemode="tozero")
    for (kind, of_clips), colour in zip(weights.items(), COLOURS, strict=False):
        names = [*(plain(title, 60) for title in titles), f"{kind}, mean of these clips"]
        for values, name in zip([*of_clips, of_clips.mean(0)], names, strict=True):
            hover = f"frame %{{x}}: %{{y:.3f}}<extra>{name}</extra>"
            thin = {"line": {"color": GREY, "width": 1}, "opacity": 0.45, "showlegend": False}
            style = {"line": {"color": colour, "width": 3}} if name is names[-1] else thin
            figure.add_scatter(x=np.arange(len(values)) + 1, y=values, name=name, hovertemplate=hover, **style)
    return figure.update_traces(mode="lines")


def attention_chart(
    attention: Mapping[str, Float[np.ndarray, "n tokens tokens"]], titles: Sequence[str], frames: int
) -> go.Figure:
    """Returns each attention matrix, and its class token's row over the frames; a menu chooses the clip."""
    columns = len(attention)
    figure = make_subplots(
        rows=2,
        cols=columns,
        specs=[[{}] * columns, [{"colspan": columns}] + [None] * (columns - 1)],
        subplot_titles=[*attention, "attention of the class tokens"],
        vertical_spacing=0.16,
    )
    for clip in (slice(None), *(slice(i, i + 1) for i in range(len(titles)))):  # all of them first
        for column, (title, of_clips) in enumerate(attention.items(), 1):
            matrix = of_clips[clip].mean(0)
            positions = sample_frames(frames, len(matrix) - 1, None) + 1
            tokens = ["class", *map(str, positions)]
            hover = "token %{y} attends to %{x}: %{z:.1%}<extra></extra>"
            style = {"showscale": False, "zmin": 0, "hovertemplate": hover}
            figure.add_heatmap(z=matrix, x=tokens, y=tokens, row=1, col=column, **style)
            style = {"name": title, "line_color": COLOURS[column - 1], "hovertemplate": "frame %{x}: %{y:.1%}"}
            figure.add_scatter(x=positions, y=matrix[0, 1:], mode="lines+markers", row=2, col=1, **style)
    figure.update_xaxes(type="category", title="attends to", row=1).update_xaxes(title="frame of the input", row=2)
    figure.update_yaxes(type="category", autorange="reversed", row=1).update_yaxes(tickformat=".0%", row=2)
    names = [f"mean of all {len(titles)} clips", *(plain(title, 70) for title in titles)]
    figure.update_layout(template=TEMPLATE, height=720, margin_t=80, legend={"y": -0.12, "yanchor": "top"})
    return figure.update_layout(updatemenus=[_choice(figure, names, y=1.08)])


def head_chart(titles: Sequence[str], values: Float[np.ndarray, "h h"], form: str) -> go.Figure:
    """Returns a matrix with a value for every two heads."""
    style = {"zmin": min(float(np.nanmin(values)), 0.9), "zmax": 1, "showscale": False, "xgap": 2, "ygap": 2}
    texts = {"texttemplate": f"%{{z:{form}}}", "hovertemplate": f"%{{y}} and %{{x}}: %{{z:{form}}}<extra></extra>"}
    figure = _figure(height=360).add_heatmap(z=values, x=titles, y=titles, **style, **texts)
    return figure.update_yaxes(autorange="reversed")


def comparison_charts(rows: Sequence[Predictions]) -> Iterator[tuple[str, go.Figure]]:
    """Yields the accuracies of runs, heads and late fusion; of several runs also what sets them apart."""
    colours, runs = {"run": BLUE, "head": GREEN, "late fusion": ORANGE}, [row for row in rows if row.kind == "run"]
    if len(rows) > 1:
        top1 = [(row.name, row.metrics["top1"], f"{row.metrics['top1']:.1%}", colours[row.kind]) for row in rows]
        yield "runs", _bars("top-1 accuracy", top1).update_xaxes(tickformat=".0%")
    if len(runs) > 1:
        patterns = [
            (title, clips, f"{clips} ({clips / len(rows[0].labels):.1%})", RED if title == "none" else BLUE)
            for title, clips in correct_patterns(runs)[:MAX_ROWS]
        ]
        yield "patterns", _bars("clips", patterns)
        spread = np.nan_to_num(np.ptp([run.accuracy for run in runs], axis=0))  # k
        shown = np.argsort(-spread, kind="stable")[: min((spread > 0).sum(), MAX_ROWS)]
        names, rates = rows[0].class_names[shown].tolist(), {run.name: run.accuracy[shown] for run in runs}
        yield "differences", _dots("accuracy of the class", names, rates)
