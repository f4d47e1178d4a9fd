"""Puts numbers, figures and film strips of a run into one HTML page that needs nothing else."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import rgbd_jax
from rgbd_jax.inference import drawing
from rgbd_jax.tools.report import charts, summary
from rgbd_jax.tools.report.source import ClipsMissingError, Explanations, Source, explain
from rgbd_jax.tools.report.summary import HEAD_TITLES, Predictions

MAX_PAIRS = 60  # rows of the table of confused pairs
MAX_MATRIX = 30  # classes of a confusion matrix that is printed as a table too
PLOTLY = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}

log = logging.getLogger("rgbd_jax")


def render(source: Source, *, errors: int = 12, correct: int = 4) -> str:
    """Returns the page of a run as HTML, with the most confident `errors`, and `correct` clips for comparison."""
    predictions, *_ = compared = summary.compare(source.runs)
    figures = _figures(source, compared)
    indices = predictions.most_confident(correct=False)[:errors]
    indices += predictions.examples(indices)[:correct]
    clips, no_clips, block = [], "no clips are requested", ""
    try:
        if indices:
            explanations = explain(source, indices)
            block = explanations.block
            clips = [_shown(explanations, i, source, predictions) for i in range(len(indices))]
            figures |= _explanation_figures(explanations, clips)
    except ClipsMissingError as error:
        no_clips = str(error)
        log.warning("clips and their explanations are left out: %s", error)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rgbd_jax.tools.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"html": _figure_html, "percent": _percent}
    return environment.get_template("report.html").render(
        source=source,
        scores=source.scores,
        predictions=predictions,
        compared=compared,
        findings=summary.findings(source, compared),
        settings=summary.settings(source.config) if source.config is not None else [],
        tables=_tables(source, compared),
        figures=figures,
        titles=HEAD_TITLES,
        clips=clips,
        no_clips=no_clips,
        block=block,
        plotly=Markup(get_plotlyjs()),
        version=rgbd_jax.__version__,
    )


def _figure_html(figure: go.Figure, name: str) -> Markup:  # Plotly escapes what would end its script element
    height = f"{figure.layout.height}px"
    options: dict[str, Any] = {"full_html": False, "include_plotlyjs": False, "default_height": height}
    return Markup(figure.to_html(config=PLOTLY, div_id=f"chart-{name}", **options))


def _figures(source: Source, compared: Sequence[Predictions]) -> dict[str, go.Figure]:
    figures, predictions = charts.training_charts(source), compared[0]
    figures["confusion"] = charts.confusion_chart(predictions)
    figures["scatter"], figures["classes"] = charts.class_charts(predictions)
    figures["reliability"], figures["confidence"] = charts.calibration_charts(predictions)
    heads = summary.titled(source.scores.heads)
    if len(heads) > 1:
        figures["agreement"] = charts.head_chart(list(heads), summary.agreement(heads), ".1%")
        figures["cka"] = charts.head_chart(list(heads), summary.cka(heads), ".3f")
    return figures | dict(charts.comparison_charts(compared))


def _explanation_figures(explanations: Explanations, clips: Sequence[dict[str, Any]]) -> dict[str, go.Figure]:
    figures, titles = {}, ["{name}: {true}, predicted as {predicted}".format(**clip) for clip in clips]
    for modality, frames in explanations.frames.items():
        if weights := explanations.weights[modality]:
            figures[f"weights-{modality}"] = charts.weights_chart(weights, titles)
        if attention := explanations.attention[modality]:
            figures[f"attention-{modality}"] = charts.attention_chart(attention, titles, frames.shape[1])
    return figures


def _shown(explanations: Explanations, i: int, source: Source, predictions: Predictions) -> dict[str, Any]:
    """Returns what the template shows of a clip; it may be one view of several that were scored."""
    clip, names = explanations.indices[i], predictions.class_names
    best = np.argsort(-predictions.probabilities[clip], kind="stable")[:3]
    strips, weights = [], {}
    for modality in explanations.frames:
        strips += [(f"{HEAD_TITLES[modality]} {kind}".strip(), x) for kind, x in explanations.film_strips(i, modality)]
        for kind, values in explanations.weights[modality].items():
            weights[f"{HEAD_TITLES[modality]} {kind}"] = (values[i] / max(values[i].max(), 1e-9)).round(3).tolist()
    return {
        "name": source.scores.names[clip],
        "true": names[predictions.labels[clip]],
        "predicted": names[predictions.predicted[clip]],
        "correct": predictions.correct[clip],
        "one_view": names[explanations.prediction.heads["logits"][i].argmax()],
        "best": [(names[label], predictions.probabilities[clip, label]) for label in best],
        "frames": [frame + 1 for frame in drawing.strip_frames(explanations.frames[modality].shape[1])],
        "strips": strips,
        "weights": weights,
    }


def _tables(source: Source, compared: Sequence[Predictions]) -> dict[str, list[tuple]]:
    """Returns the rows of the tables: text, numbers of clips as integers, and rates as float."""
    predictions = compared[0]
    names, clips = predictions.class_names, predictions.clips
    errors = predictions.confusion - np.diag(np.diag(predictions.confusion))
    mostly = [f"{names[row.argmax()]} ({row.max()})" if row.any() else "" for row in errors]
    columns = names, clips, predictions.accuracy, predictions.precision, predictions.predictions, mostly
    tables = {"classes": [tuple(column[i] for column in columns) for i in predictions.worst_classes()]}
    pairs = predictions.confused_pairs()[:MAX_PAIRS]
    tables["pairs"] = [(names[i], names[j], count, count / clips[i], back) for i, j, count, back in pairs]
    if len(names) <= MAX_MATRIX:
        tables["confusion"] = [(name, *row) for name, row in zip(names, predictions.confusion, strict=True)]
    history = source.metadata.history if source.metadata else []
    metrics = [name for name in (history[-1] if history else ()) if name not in ("clips", "views")]
    tables["history"] = [tuple(_metric(name, epoch.get(name, math.nan)) for name in metrics) for epoch in history]
    tables["heads"] = list(summary.head_rows(source.scores.heads, predictions))
    correct_runs = np.sum([row.correct for row in compared if row.kind == "run"], axis=0)  # n
    only = [(row.correct & (correct_runs == 1)).sum() if row.kind == "run" else "" for row in compared]
    tables["runs"] = [
        (row.name, row.modality, row.step or "", *row.metrics.values(), unique)
        for row, unique in zip(compared, only, strict=True)
    ]
    rates = np.stack([row.accuracy for row in compared if row.kind != "late fusion"], 1)  # k r
    differences = np.ptp(rates, axis=1)  # k
    order = np.argsort(-np.nan_to_num(differences, nan=-1.0), kind="stable")
    tables["class_comparison"] = [(names[i], *rates[i], differences[i]) for i in order]
    return tables


def _metric(name: str, value: float) -> float | str:
    is_rate = name.startswith(("top", "mean_per_class", "reference_protocol"))
    return f"{value:.4g}" if isinstance(value, float) and not is_rate else value


def _percent(rate: float) -> str:
    return "\N{EN DASH}" if math.isnan(rate) else f"{rate:.1%}"
