"""The facts of a run at the head of the page: figures with the clips that they rest on, and what produced them."""

import dataclasses

from rgbd_jax.metrics import FUSION_SUMS, accuracies
from rgbd_jax.report.confidence import Answers, wilson_interval
from rgbd_jax.report.heads import head_name, ordered
from rgbd_jax.report.source import Source
from rgbd_jax.report.tables import percent
from rgbd_jax.scores import Scores


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
        found.append(Tile(head_name(name, scores.stream), percent(top1), "top-1 of this head alone"))
    if "rgb" in scores.heads:
        for title, heads in (("RGB + depth", FUSION_SUMS["top1_rgb_depth"]), ("all three", FUSION_SUMS["top1_all"])):
            summed = sum(scores.heads[head] for head in heads)
            found.append(Tile(title, percent(accuracies(summed, scores.labels)["top1"]), "top-1 of the logits' sum"))
    return found


def facts(source: Source) -> list[tuple[str, str]]:
    """Returns what a run is of, name and value; what is not known is left out."""
    scores = source.scores.scores[0]
    found = [
        ("Folder", str(source.workdir)),
        ("Data set", scores.dataset),
        ("Split", f"{scores.split} ({len(scores.labels)} clips, {scores.heads['logits'].shape[1]} classes)"),
        ("Stream", scores.stream),
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
        ("Started", provenance.get("started", "")),
        ("Git revision", provenance.get("git") or ""),
        ("Command", " ".join(provenance.get("command", ()))),
        ("Machine", ", ".join(f"{name} {value}" for name, value in machine.items())),
        ("Clips", "; ".join(_clips(kind, of_kind) for kind, of_kind in data.items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]


def _protocol(source: Source) -> str:
    config = source.config
    if config is None:
        return ""
    views = (
        f"{config.eval.clips * config.eval.crops} views of a clip" if config.eval.clips * config.eval.crops > 1 else ""
    )
    short = "clips of 16 frames or fewer left out" if config.data.reference_protocol else ""
    trained = f"trained on {config.data.train_split}" if config.data.train_split else ""
    return ", ".join(part for part in (trained, views, short) if part)


def _clips(kind: str, data: dict) -> str:
    return f"{kind}: {data.get('clips')} of {data.get('split')} ({data.get('dataset')} {data.get('version')}, sample {data.get('sample')})"
