"""The facts of a run at the head of the page: figures with the clips that they rest on, and what produced them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_jax.metrics import FUSION_SUMS, accuracies
from rgbd_jax.scores import Scores
from rgbd_jax.tools.report.confidence import Answers, wilson_interval
from rgbd_jax.tools.report.heads import head_name, ordered
from rgbd_jax.tools.report.source import Source
from rgbd_jax.tools.report.tables import percent


@dataclasses.dataclass(frozen=True)
class Tile:
    """A figure in large letters.

    Attributes:
        title: what it is.
        value: the figure.
        note: what it rests on.
    """

    title: str
    value: str
    note: str = ""


def tiles(scores: Scores, answers: Answers) -> list[Tile]:
    """Returns the accuracies of a run."""
    measured = accuracies(scores.heads["logits"], scores.labels)
    clips, right = len(scores.labels), int(answers.right.sum())
    low, high = wilson_interval(right, clips)
    found = [
        Tile("top-1", percent(right / clips), f"{right} of {clips} clips, 95 % interval {low:.1%} to {high:.1%}"),
        Tile("top-5", percent(measured["top5"]), "the right class is among five"),
        Tile("mean per class", percent(measured["mean_per_class"]), "top-1, every class counting alike"),
    ]
    for name in ordered(scores.heads)[1:]:
        top1 = accuracies(scores.heads[name], scores.labels)["top1"]
        found.append(Tile(head_name(name, scores.modality), percent(top1), "top-1 of this head alone"))
    if "rgb" in scores.heads:
        for title, heads in (("RGB + depth", FUSION_SUMS["top1_rgb_depth"]), ("all three", FUSION_SUMS["top1_all"])):
            summed = np.sum([scores.heads[head] for head in heads], axis=0)
            found.append(Tile(title, percent(accuracies(summed, scores.labels)["top1"]), "top-1 of the logits' sum"))
    return found


def facts(source: Source) -> list[tuple[str, str]]:
    """Returns what a run is of, name and value; what is not known is left out."""
    scores = source.scores.scores[0]
    found = [
        ("Folder", str(source.workdir)),
        ("Data set", scores.dataset),
        ("Split", f"{scores.split} ({len(scores.labels)} clips, {scores.heads['logits'].shape[1]} classes)"),
        ("Stream", scores.modality),
        ("Step", str(scores.step) if scores.step else ""),
    ]
    if source.run is not None:
        found += _of_run(source)
    return [(name, value) for name, value in found if value]


def _of_run(source: Source) -> list[tuple[str, str]]:
    assert source.run is not None
    provenance, history = source.run.provenance, source.run.history
    epochs = source.config.train.epochs if source.config is not None else "?"
    last = history[-1] if history else None
    machine = provenance.get("machine", {})
    versions = provenance.get("versions", {})
    data = provenance.get("data", {})
    return [
        ("Checkpoint", f"{source.which}, after epoch {last['epoch']} of {epochs}" if last else str(source.which)),
        ("Protocol", _protocol(source)),
        ("Started", provenance.get("started", "").replace("T", " ").replace("+00:00", " UTC")),
        ("Git revision", provenance.get("git") or ""),
        ("Command", _command(provenance.get("command", ()))),
        ("Machine", ", ".join(f"{name} {value}" for name, value in machine.items())),
        ("Clips", "; ".join(_clips(kind, of_kind) for kind, of_kind in data.items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]


def _protocol(source: Source) -> str:
    config = source.config
    if config is None:
        return ""
    views = config.eval.clips * config.eval.crops
    short = ", clips of 16 frames or fewer left out" if config.data.reference_protocol else ""
    return (
        f"trained on {config.data.train_split or 'train'}, evaluated on {source.scores.scores[0].split}, "
        f"{views} view{'s' if views > 1 else ''} of each clip{short}"
    )


def _command(words: Sequence[str]) -> str:
    """Returns a command line, with the module that was run instead of its file."""
    if words and words[0].endswith("rgbd_jax/main.py"):
        words = ["python -m rgbd_jax.main", *words[1:]]
    return " ".join(words)


def _clips(kind: str, data: Mapping[str, Any]) -> str:
    known = {"clips": "?", "split": "?", "dataset": "", "version": "", "sample": "?", **data}
    return "{clips} of {split} for {kind} ({dataset} {version}, sample {sample})".format(kind=kind, **known)
