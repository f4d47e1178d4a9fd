"""The card that lies beside weights: what they are, what they were made from, how good they are, what is not known."""

import json
import logging
from pathlib import Path
from typing import Any

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint import card_sections as sections
from rgbd_jax.checkpoint.card_facts import Facts

CARD_FILE = "MODEL_CARD.md"

log = logging.getLogger("rgbd_jax")


def write_model_card(folder: Path, text: str) -> None:
    """Writes a card into a folder, whole or not at all; where that fails, a line of the log tells so."""
    try:
        with atomic_write(folder / CARD_FILE) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:  # the weights are worth more than their card
        log.warning("%s", error)


def model_card(facts: Facts) -> str:
    """Returns the card of weights, in Markdown, with a front matter that model hubs read."""
    parts = {
        "What it is": sections.network(facts),
        "Data": sections.data(facts),
        "Training": sections.training(facts),
        "Accuracy": sections.accuracy(facts),
        "What produced it": sections.produced(facts),
        "Use and limits": sections.limits(facts),
        "Licence and citation": sections.terms(facts),
    }
    body = [f"## {title}\n\n" + "\n".join(lines) for title, lines in parts.items()]
    origin = "after every evaluation of a training: what you add before the last one is lost"
    if facts.converted_from:
        origin = "when the weights were converted"
    written = f"<!-- Written by rgbd_jax {origin}. -->"
    return "\n\n".join([_front_matter(facts), written, f"# {_title(facts)}", _summary(facts), *body]) + "\n"


def _title(facts: Facts) -> str:
    stream = {"rgb": "RGB", "depth": "depth", "fusion": "RGB-D fusion"}.get(facts.field("modality"), "one stream")
    return f"{facts.field('data.dataset') or 'Motion recognition'}, {stream}, {facts.classes} classes"


def _summary(facts: Facts) -> str:
    measured = facts.measured
    if measured is None:
        said = f"Its accuracy on known clips: {sections.UNKNOWN}."
        if facts.best_accuracy is not None:
            said = f"Its training noted a best accuracy of {facts.best_accuracy:.2%}, on clips of its own."
    else:
        split = facts.data("evaluation").get("split", "the evaluation split")
        top1, clips = sections.percent(measured.get("top1")), measured.get("clips", "an unrecorded number of")
        said = f"Top-1 {top1} of {clips} clips ({split})."
    return f"Tells which of {facts.classes} motions a short clip shows. {said}"


def _front_matter(facts: Facts) -> str:
    """Returns the front matter: JSON values, which are YAML too."""
    lines: list[tuple[str, Any]] = [
        ("library_name", "rgbd_jax"),
        ("license", "unknown"),  # of the weights: nobody but who publishes them can say
        ("pipeline_tag", "video-classification"),
        ("tags", ["jax", "flax", "video-classification", "rgb-d", "gesture-recognition", "action-recognition"]),
    ]
    measured, dataset = facts.measured, facts.data("evaluation")
    if measured is not None and dataset:
        names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
        metrics = [
            {"type": "accuracy", "name": name, "value": round(100 * measured[key], 4)}
            for key, name in names.items()
            if key in measured
        ]
        result = {
            "task": {"type": "video-classification"},
            "dataset": {
                "name": f"{dataset['dataset']} {dataset['version']}",
                "type": dataset["dataset"],
                "split": dataset["split"],
            },
            "metrics": metrics,
        }
        lines.append(("model-index", [{"name": _title(facts), "results": [result]}]))
    return "\n".join(["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in lines), "---"])
