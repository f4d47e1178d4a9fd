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
from rgbd_jax.metrics import accuracies
from rgbd_jax.modalities import MODALITIES
from rgbd_jax.tools.report import charts, summary
from rgbd_jax.tools.report.explanations import ClipExplanation, ClipsMissingError, explain
from rgbd_jax.tools.report.source import Source
from rgbd_jax.tools.report.summary import Compared, Predictions

MAX_PAIRS = 60  # rows of the table of confused pairs
MAX_MATRIX = 30  # classes of a confusion matrix that is printed as a table too
PLOTLY = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}

Table = tuple[list[str], list[tuple]]  # columns, rows of text, numbers of clips (int) and rates (float)

log = logging.getLogger("rgbd_jax")


def render(source: Source, *, errors: int = 12, correct: int = 4) -> str:
    """Returns the page of a run as HTML.

    Args:
        source: what exists of it.
        errors: how many incorrect clips are shown, the most confident ones.
        correct: how many correct clips are shown for comparison.
    """
    scores, predictions = source.scores, Predictions(source.scores)
    folders = [file.parents[1] for file in source.runs.files]
    names = [folder.resolve().name for folder in folders]
    rows = summary.compare(source.runs, names if len(set(names)) == len(names) else list(map(str, folders)))
    figures = _figures(source, predictions, rows)
    indices = predictions.confident_errors(errors)
    indices += predictions.correct_examples(indices, correct)
    clips, no_clips = [], "no clips are requested"
    try:
        explanations = explain(source, indices) if indices else []
        clips = [_shown(explanation, source, predictions) for explanation in explanations]
        titles = ["{name}: {true}, predicted as {predicted}".format(**clip) for clip in clips]
        for modality in explanations[0].modalities if explanations else ():
            figures[f"weights-{modality}"] = charts.weights_chart(explanations, titles, modality)
            figures[f"attention-{modality}"] = charts.attention_chart(explanations, titles, modality)
    except ClipsMissingError as error:
        no_clips = str(error)
        log.warning("clips and their explanations are left out: %s", error)
    loader = jinja2.PackageLoader("rgbd_jax.tools.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"html": _figure_html, "percent": _percent}
    return environment.get_template("report.html").render(
        source=source,
        scores=scores,
        predictions=predictions,
        metrics=accuracies(scores.heads["logits"], scores.labels),
        interval=summary.wilson_interval(int(predictions.correct.sum()), len(scores.labels)),
        findings=summary.findings(source, predictions, rows),
        settings=summary.settings(source.config) if source.config is not None else [],
        compared=rows,
        tables=_tables(source, predictions, rows),
        figures={name: figure for name, figure in figures.items() if figure is not None},
        modalities={modality: summary.HEAD_TITLES[modality] for modality in MODALITIES},
        clips=clips,
        no_clips=no_clips,
        plotly=Markup(get_plotlyjs()),
        version=rgbd_jax.__version__,
    )


def _figure_html(figure: go.Figure, name: str) -> Markup:  # Plotly escapes what would end its script element
    height = f"{figure.layout.height}px"
    options: dict[str, Any] = {"full_html": False, "include_plotlyjs": False, "default_height": height}
    return Markup(figure.to_html(config=PLOTLY, div_id=f"chart-{name}", **options))


def _figures(source: Source, predictions: Predictions, rows: Sequence[Compared]) -> dict[str, go.Figure | None]:
    heads = source.scores.heads
    figures: dict[str, go.Figure | None] = {**charts.training_charts(source)}
    figures["confusion"] = charts.confusion_chart(predictions)
    figures["scatter"], figures["classes"] = charts.class_charts(predictions)
    figures["reliability"], figures["confidence"] = charts.calibration_charts(predictions)
    if len(heads) > 1:
        figures["agreement"] = charts.head_chart(heads, summary.agreement(heads), ".1%")
        figures["cka"] = charts.head_chart(heads, summary.cka(heads), ".3f")
    if len(rows) > 1:
        compared = charts.comparison_charts(rows, predictions)
        figures |= zip(("runs", "patterns", "differences"), compared, strict=False)
    return figures


def _shown(explanation: ClipExplanation, source: Source, predictions: Predictions) -> dict[str, Any]:
    """Returns what the template shows of a clip; it may be one view of several that were scored."""
    i, names = explanation.index, predictions.class_names
    best = np.argsort(-predictions.probabilities[i], kind="stable")[:3]
    strips, weights = [], {}
    for modality, part in explanation.modalities.items():
        title = summary.HEAD_TITLES[modality]
        strips += [(f"{title} {kind}".strip(), picture) for kind, picture in part.film_strip()]
        for kind, values in part.weights.items():
            weights[f"{title} {kind}"] = (values / max(float(values.max()), 1e-9)).round(3).tolist()
    return {
        "name": source.scores.names[i],
        "true": names[predictions.labels[i]],
        "predicted": names[predictions.predicted[i]],
        "correct": bool(predictions.correct[i]),
        "one_view": names[explanation.probabilities.argmax()],
        "best": [(names[label], float(predictions.probabilities[i, label])) for label in best],
        "frames": [frame + 1 for frame in drawing.strip_frames(len(part.frames))],
        "strips": strips,
        "weights": weights,
    }


def _tables(source: Source, predictions: Predictions, compared: Sequence[Compared]) -> dict[str, Table]:
    """Returns the tables: text, numbers of clips as int, and rates as float."""
    names, confusion = predictions.class_names, predictions.confusion
    clips, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    accuracy, precision = predictions.accuracy.tolist(), predictions.precision.tolist()
    errors = confusion - np.diag(np.diag(confusion))
    mostly = [f"{names[row.argmax()]} ({row.max()})" if row.any() else "" for row in errors]
    tables: dict[str, Table] = {}
    columns = ["class", "clips", "accuracy", "precision", "predictions", "most often predicted as"]
    order = predictions.worst_classes()
    rows: list[tuple] = [(names[i], clips[i], accuracy[i], precision[i], predicted[i], mostly[i]) for i in order]
    tables["classes"] = columns, rows
    pairs = predictions.confused_pairs()[:MAX_PAIRS]
    rows = [(names[true], names[other], count, count / clips[true], back) for true, other, count, back in pairs]
    tables["pairs"] = ["true class", "predicted as", "clips", "of the class", "reverse"], rows
    if len(names) <= MAX_MATRIX:
        rows = [(name, *row) for name, row in zip(names, confusion.tolist(), strict=True)]
        tables["confusion"] = ["true class", *names], rows
    if source.metadata and (history := source.metadata.history):
        columns = [name for name in history[-1] if name not in ("clips", "views")]
        rates = tuple(name for name in columns if name.startswith(("top", "mean_per_class", "reference_protocol")))
        rows = []
        for epoch in history:
            values = {name: epoch.get(name, math.nan) for name in columns}
            rows.append(tuple(f"{v:.4g}" if isinstance(v, float) and n not in rates else v for n, v in values.items()))
        tables["history"] = [name.replace("_", " ") for name in columns], rows
    columns = ["head", "top-1 accuracy", "correct unlike the final prediction", "incorrect unlike it"]
    tables["heads"] = columns, list(summary.head_rows(source.scores.heads, predictions))
    correct_runs = np.sum([row.correct for row in compared if row.kind == "run"], axis=0)  # n
    only = [int((row.correct & (correct_runs == 1)).sum()) if row.kind == "run" else "" for row in compared]
    rows = [
        (row.name, row.modality, row.step or "", row.top1, row.top5, row.mean_per_class, unique)
        for row, unique in zip(compared, only, strict=True)
    ]
    tables["runs"] = ["run", "modality", "step", "top-1", "top-5", "mean per class", "clips only it has correct"], rows
    accuracies_of = {row.name: row.class_accuracy for row in compared if row.kind != "late fusion"}
    differences = np.ptp(list(accuracies_of.values()), axis=0)  # k
    order = np.argsort(-np.nan_to_num(differences, nan=-1.0), kind="stable")
    class_rates = np.stack([*accuracies_of.values(), differences], 1).tolist()  # k columns
    tables["class_comparison"] = ["class", *accuracies_of, "difference"], [(names[i], *class_rates[i]) for i in order]
    return tables


def _percent(rate: float) -> str:
    return "\N{EN DASH}" if math.isnan(rate) else f"{rate:.1%}"
