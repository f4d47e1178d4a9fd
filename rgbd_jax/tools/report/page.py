"""The page: everything that is known of a run, rendered into one HTML file that needs nothing else."""

import dataclasses
import datetime
import importlib.metadata
import importlib.resources
import logging
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rgbd_jax.metrics import softmax
from rgbd_jax.tools.report import findings, tables
from rgbd_jax.tools.report.class_charts import class_chart, confidence_chart, confusion_chart, scatter_chart
from rgbd_jax.tools.report.classes import class_figures, confusion, most_confused
from rgbd_jax.tools.report.comparison import class_accuracies, compare
from rgbd_jax.tools.report.comparison_charts import comparison_charts
from rgbd_jax.tools.report.confidence import Answers, confident_errors, right_beside
from rgbd_jax.tools.report.curves import steps_per_epoch
from rgbd_jax.tools.report.heads import NAMES, head_figures
from rgbd_jax.tools.report.looked_at import ClipExplanation, ClipsMissingError, look
from rgbd_jax.tools.report.network_charts import attention_charts, head_charts, weights_chart
from rgbd_jax.tools.report.settings_table import settings_table
from rgbd_jax.tools.report.source import Source
from rgbd_jax.tools.report.strips import Strip, draw_strip
from rgbd_jax.tools.report.summary import facts, tiles
from rgbd_jax.tools.report.training_charts import training_charts

MOST_PAIRS = 60
ASSETS = "assets"

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class ShownClip:
    """A clip on the page.

    Attributes:
        name: the clip.
        true: name of its class.
        predicted: name of the class that the network decided for.
        right: whether these are the same.
        confidence: probability of the predicted class.
        best: names and probabilities of the most probable classes.
        strip: its pictures.
        note: what a reader has to know, "" if nothing.
    """

    name: str
    true: str
    predicted: str
    right: bool
    confidence: float
    best: tuple[tuple[str, float], ...]
    strip: Strip
    note: str


def render(source: Source, *, errors: int = 12, right: int = 4) -> str:
    """Returns the page of a run as HTML.

    Args:
        source: what there is of it.
        errors: wrong clips that are shown, the most confident ones.
        right: right clips that are shown beside them.
    """
    scores = source.scores.scores[0]
    logits = scores.heads["logits"].astype(np.float64)
    classes = logits.shape[1]
    names = (*scores.class_names, *(f"class {label}" for label in range(len(scores.class_names), classes)))
    answers = Answers(scores.labels, logits.argmax(1), softmax(logits))
    counts = confusion(answers.predicted, scores.labels, classes)
    figures = class_figures(counts)
    heads = head_figures(scores.heads, scores.labels) if len(scores.heads) > 1 else []
    context: dict[str, Any] = {
        "title": source.workdir.resolve().name,
        "facts": facts(source),
        "tiles": tiles(scores, answers),
        "notes": source.notes,
        "settings": settings_table(source.config) if source.config is not None else [],
        "confusion": confusion_chart(counts, names),
        "count_table": tables.count_table(counts, names),
        "class_charts": [class_chart(figures, names), scatter_chart(figures, names)],
        "class_table": tables.class_table(figures, counts, names),
        "pair_table": tables.pair_table(most_confused(counts, MOST_PAIRS), names),
        "confidence": confidence_chart(answers),
        "head_charts": head_charts(scores.heads, scores.modality) if heads else [],
        "head_table": tables.head_table(heads, scores.modality) if heads else None,
    }
    found = [*findings.class_findings(counts, names), *findings.answer_findings(answers)]
    found += _curves(context, source)
    found += findings.head_findings(heads, scores.modality) if heads else []
    found += _comparison(context, source, names)
    context["findings"] = found
    wrong = confident_errors(answers, errors)
    _clips(context, source, answers, names, wrong, right_beside(answers, wrong, right))
    return _filled_in(context)


def _curves(context: dict[str, Any], source: Source) -> list[findings.Finding]:
    """Adds the curves, or why there are none; returns what stands out of them."""
    context |= {"curves": [], "history": None, "no_curves": ""}
    if source.curves is None or source.config is None:
        context["no_curves"] = (
            "There is no metrics.jsonl beside the scores: the network was not trained in this folder."
        )
        return []
    history = source.run.history if source.run is not None else ()
    epoch = steps_per_epoch(history)
    step = history[-1]["step"] if history else None
    context["curves"] = training_charts(source.curves, source.config, epoch, step)
    context["history"] = tables.history_table(history) if history else None
    if not context["curves"]:
        context["no_curves"] = "The training has not written any figures yet."
    return list(findings.training_findings(source.curves, epoch))


def _comparison(context: dict[str, Any], source: Source, names: tuple[str, ...]) -> list[findings.Finding]:
    """Adds the comparison, if there is something to compare; returns what stands out of it."""
    context |= {"comparison_charts": [], "comparison_tables": []}
    runs = [files.parents[1].resolve().name for files in source.scores.files]
    if len(set(runs)) < len(runs):
        runs = [str(files.parents[1]) for files in source.scores.files]
    comparison = compare(source.scores, runs)
    if len(comparison.rows) < 2:
        return []
    rights = {row.name: row.right for row in comparison.rows if row.kind != "sum"}
    by_class = class_accuracies(rights, source.scores.labels, len(names))
    context["comparison_charts"] = comparison_charts(comparison, by_class, names)
    context["comparison_tables"] = [
        tables.comparison_table(comparison), tables.class_comparison_table(by_class, names),
    ]  # fmt: skip
    return list(findings.comparison_findings(comparison))


def _clips(
    context: dict[str, Any],
    source: Source,
    answers: Answers,
    names: tuple[str, ...],
    wrong: list[int],
    right: list[int],
) -> None:
    """Adds clips and what is known of them, or why there are none."""
    context |= {"wrong": [], "right": [], "no_clips": "", "weights": [], "attention": [], "clip_names": []}
    try:
        looked_at = look(source, [*wrong, *right]) if wrong or right else []
    except ClipsMissingError as error:
        context["no_clips"] = f"{error}"
        log.warning("clips and what the network makes of them are left out: %s", error)
        return
    shown = [_shown(clip, source, answers, names) for clip in looked_at]
    context["wrong"], context["right"] = shown[: len(wrong)], shown[len(wrong) :]
    if not looked_at:
        context["no_clips"] = "no clips were asked for"
        return
    titles = [f"{clip.name}: {clip.true}" + ("" if clip.right else f", taken for {clip.predicted}") for clip in shown]
    context["clip_names"] = titles
    for modality in looked_at[0].seen:
        weights = weights_chart(looked_at, titles, modality)
        context["weights"] += [weights] if weights is not None else []
        frames = len(looked_at[0].seen[modality].frames)
        context["attention"].append((NAMES[modality], modality, attention_charts(looked_at, modality, frames)))


def _shown(clip: ClipExplanation, source: Source, answers: Answers, names: tuple[str, ...]) -> ShownClip:
    place = clip.place
    probabilities = answers.probabilities[place]
    predicted = int(answers.predicted[place])
    best = np.argsort(-probabilities, kind="stable")[:3]
    now = int(clip.probabilities.argmax())
    note = f"Seen in one view, as here, it is taken for “{names[now]}”." if now != predicted else ""
    name = source.scores.names[place]
    return ShownClip(
        name, names[answers.labels[place]], names[predicted], predicted == answers.labels[place],
        float(probabilities[predicted]), tuple((names[label], float(probabilities[label])) for label in best),
        draw_strip(clip, name), note,
    )  # fmt: skip


def _filled_in(context: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("rgbd_jax.tools.report", ASSETS), autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = tables.percent
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html").render(
        **context,
        css=_asset("page.css"),
        theme_script=_asset("theme.js"),
        scripts=[_asset("charts.js"), _asset("confusion.js"), _asset("tables.js")],
        plotly=Markup(get_plotlyjs()),
        version=importlib.metadata.version("rgbd_jax"),
        made=datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes"),
    )


def _breakable(name: str) -> Markup:
    """Returns a name that may be broken after an underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def _asset(name: str) -> Markup:
    return Markup(importlib.resources.files("rgbd_jax.tools.report").joinpath(ASSETS, name).read_text("utf-8"))
