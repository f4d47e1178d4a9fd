"""The sections of a model card: functions of what is known, each returning lines of Markdown."""

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgbd_jax.checkpoint.card_facts import Facts, started_from
from rgbd_jax.modalities import STREAMS

UNKNOWN = "not recorded"
PAPER = (
    "Zhou et al., *Decoupling and Recoupling Spatiotemporal Representation for RGB-D-based Motion Recognition*, "
    "CVPR 2022"
)
KINDS = {
    "rgb": "one stream, of colour frames",
    "depth": "one stream, of depth frames",
    "fusion": "two streams, of colour and of depth frames, and their fusion",
    None: f"one stream; of colour or of depth frames: {UNKNOWN}",
}
INIT_WORDS = {
    "continue_from": "the training that is taken over, with its epoch and momentum",
    "init_from": "all weights that fit, but for the last layers of the class heads",
    "fusion.init_rgb_from": "the colour stream, without its class heads",
    "fusion.init_depth_from": "the depth stream, without its class heads",
}


def network(facts: Facts) -> list[str]:
    """Returns what the network is, what it takes and what it says."""
    frames, size, stream = facts.field("clip.frames"), facts.field("clip.size"), facts.field("modality")
    kinds = " and as many ".join({"rgb": "RGB", "depth": "depth"}[name] for name in STREAMS.get(stream, ()))
    pixels = f"{size}x{size} pixels" if size else f"pixels: {UNKNOWN}"
    rows = {
        "network": KINDS[stream],
        "size": f"{facts.parameters:,} parameters, width {facts.field('model.width'):g}",
        "temporal branches": _branches(facts),
        "input": f"{frames or UNKNOWN + ' how many'} {kinds or 'RGB or depth'} frames of a clip, 3 channels, {pixels}",
        "output": f"scores of {facts.classes} classes",
        "computed in": facts.field("model.dtype"),
    }
    if stream in ("depth", "fusion"):
        rows["depth is shown as"] = _depth(facts)
    names = ", ".join(f"{label} {name}" for label, name in enumerate(facts.class_names)) or UNKNOWN
    return [*_table(rows), "", f"Classes, by label: {names}."]


def _branches(facts: Facts) -> str:
    parts = [f"{facts.field('model.temporal_blocks')} blocks of {facts.field('model.attention_heads')} attention heads"]
    if branches := facts.field("model.branch_frames"):
        parts.insert(0, "three see {}, {} and {} frames".format(*branches))
    heads = facts.field("model.recoupling_heads")
    parts.append(f"recoupling, heads: {heads}" if facts.field("model.recoupling") else "no recoupling")
    parts.append("rank pooling (FRP)" if facts.field("model.frp") else "no rank pooling")
    if (layout := facts.field("fusion.reference_layout")) is not None and facts.field("modality") == "fusion":
        parts.append(f"config.fusion.reference_layout={layout}")
    return "; ".join(parts)


def _depth(facts: Facts) -> str | None:
    depth = facts.field("data.depth")
    if not depth:
        return None
    if depth["encoding"] == "linear":
        near, far = depth["range_mm"]
        encoding = f"linear from {near} to {far} mm"
    else:
        encoding = depth["encoding"]
    cut = ", cut around the person" if depth.get("reference_person_crop") else ""
    return f"{encoding}, colours {depth['colour_map']}{cut}; frames that are coloured already are taken as they are"


def data(facts: Facts) -> list[str]:
    """Returns the clips, and how training changes them."""
    rows: dict[str, Any] = {"data set": facts.field("data.dataset")}
    for kind, told in (("training", "trained on"), ("evaluation", "evaluated on")):
        data = facts.data(kind)
        if data:
            rows["data set"] = f"{data['dataset']} {data['version']}"
        rows[told] = (
            f"{data['clips']} clips, split `{data['split']}`; fingerprint: classes {data['classes']}, sample "
            f"{data['sample']}"
            if data
            else None
        )
    transforms = facts.field("data.transforms")
    if transforms:
        width, height = transforms["resize"]
        low, high = transforms["rotation_degrees"]
        flip, rotation = transforms["flip_probability"], transforms["rotation_probability"]
        rows["augmentation"] = (
            f"frames of {width}x{height}, crops of {transforms['crop_size']} at random places"
            + (f", flipped with probability {flip:g}" if flip else ", not flipped")
            + (f", rotated by {low} to {high} degrees with probability {rotation:g}" if rotation else ", not rotated")
            + (", blurred" if transforms["blur"] else "")
            + _mixing(facts)
        )
    else:
        rows["augmentation"] = None
    if facts.field("data.reference_protocol"):
        rows["left out"] = "clips of 16 frames or fewer, of training and evaluation (`config.data.reference_protocol`)"
    return _table(rows)


def _mixing(facts: Facts) -> str:
    alphas = {"mixup": facts.field("mixing.mixup_alpha"), "ShuffleMix": facts.field("mixing.shufflemix_alpha")}
    return "".join(f", {name} with alpha {alpha:g}" for name, alpha in alphas.items() if alpha)


def training(facts: Facts) -> list[str]:
    """Returns what the training started from, and its settings."""
    epoch, epochs = facts.history[-1]["epoch"] if facts.history else facts.epoch, facts.field("train.epochs")
    batch, seed = facts.field("train.batch_size"), facts.field("seed")
    rows = {
        "started from": _start(facts),
        "epochs": None if epoch is None else f"{epoch} done" + (f" of {epochs}" if epochs else ""),
        "batch": None if batch is None else f"{batch} clips over all devices" + _parts(facts),
        "optimizer": _optimizer(facts),
        "schedule": _schedule(facts),
        "losses": _losses(facts),
        "seed": seed,
    }
    return _table(rows)


def _parts(facts: Facts) -> str:
    parts = facts.field("train.microbatches") or 1
    return f", in {parts} microbatches" if parts > 1 else ""


def _start(facts: Facts) -> str | None:
    known = facts.provenance.get("started_from")
    if known is None and facts.config.get("train"):  # written by a version before this was noted
        known = started_from(facts.config)
    if known is None:
        return None
    told = [f"`{path}`: {INIT_WORDS[field]} (`config.{field}`)" for field, path in known.items()]
    return (
        "; ".join(told) + "; the rest random" * ("continue_from" not in known) if told else "random weights (scratch)"
    )


def _optimizer(facts: Facts) -> str | None:
    ours, theirs = facts.field("optimizer"), facts.optimizer
    if ours:
        momentum = f", momentum {ours['momentum']:g}" if ours["name"] == "sgd" else ""
        clip = f", gradient clipped at a norm of {ours['gradient_clip']:g}" if ours["gradient_clip"] else ""
        return f"{ours['name']}{momentum}, weight decay {ours['weight_decay']:g}{clip}"
    return ", ".join(f"{name} {value}" for name, value in theirs.items()) or None


def _schedule(facts: Facts) -> str | None:
    schedule = facts.field("schedule")
    if not schedule:
        return None
    return (
        f"{schedule['name']}, learning rate {schedule['learning_rate']:g} to {schedule['minimum']:g}, "
        f"{schedule['warm_up_epochs']} epochs of warm-up"
    )


def _losses(facts: Facts) -> str | None:
    loss = facts.field("loss")
    if not loss:
        return None
    return (
        f"cross entropy with label smoothing {loss['label_smoothing']:g}, distillation with weight "
        f"{loss['distillation']:g} and temperature {loss['distillation_temperature']:g}"
    )


def accuracy(facts: Facts) -> list[str]:
    """Returns the figures of the weights, and how they were chosen."""
    measured = facts.measured
    if measured is None:
        rows = {
            "top-1, top-5, mean per class": None,
            "best accuracy that the training noted": percent(facts.best_accuracy),
            "of which clips, and by which rule": None,
        }
        said = "The authors' code notes the largest of several sums of heads (`reference_protocol` here), not top-1."
        return [*_table(rows), "", said]
    latest = facts.history[-1]
    if facts.converted_from:
        columns = {"these weights": measured}
    elif latest["step"] == measured["step"]:
        columns = {"best and latest": measured}
    else:
        columns = {"best": measured, "latest": latest}
    numbers = {"step": "step", "epoch": "epoch", "clips": "clips", "views": "views of a clip"}
    shares = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
    shares |= {key: _head(key) for key in measured if key.startswith("top1_")}
    shares["reference_protocol"] = "reference_protocol"
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for key, name in numbers.items():
        lines.append(f"| {name} | " + " | ".join(str(of.get(key, UNKNOWN)) for of in columns.values()) + " |")
    for key, name in shares.items():
        lines.append(f"| {name} | " + " | ".join(percent(of.get(key)) or UNKNOWN for of in columns.values()) + " |")
    return [*lines, "", *_choice(facts)]


def _head(key: str) -> str:
    """Returns the name of the figure of a head, or of a sum of heads."""
    sums = {"top1_rgb_depth": "RGB + depth", "top1_all": "RGB + depth + fused"}
    return f"top-1 of {sums.get(key, key.removeprefix('top1_') + ' alone')}"


def _choice(facts: Facts) -> Iterator[str]:
    metric, evaluated, first = facts.field("checkpoint.best_metric"), len(facts.history), facts.history[0]
    yield (
        "Top-1, top-5 and mean per class are of the logits that decide; `reference_protocol` is the largest of several "
        "sums of heads, as the authors' code reports it."
    )
    if facts.converted_from and facts.best != facts.measured:
        yield f"They are of the latest of {evaluated} evaluated epochs; by `{metric or 'top1'}` another one was better."
    elif evaluated > 1:
        yield (
            f"The best of {evaluated} evaluated epochs was chosen by `{metric or 'top1'}` on the very clips that the "
            "figures are of: they are a little too good. Figures of clips without a part in the choice: not recorded."
        )
    else:
        yield "One epoch was evaluated: none was chosen on these clips. What the settings were chosen on: not recorded."
    if notes := [f"{name} {first[name]}" for name in first if name.endswith("_there") or name == "continued_from"]:
        yield "Of the training that was taken over: " + ", ".join(notes) + "."


def produced(facts: Facts) -> list[str]:
    """Returns versions, machine, command and dates."""
    known = facts.provenance
    versions = ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items() if version)
    machine = known.get("machine")
    rows = {
        "converted from": f"`{facts.converted_from}`" if facts.converted_from else "",
        "begun": known.get("begun", known.get("started")),
        "this card written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": machine and f"{machine['devices']} x {machine['device']}, processes: {machine['processes']}",
        "git revision": known.get("git"),
        "versions": versions or None,
    }
    lines = _table({name: value for name, value in rows.items() if value != ""})
    if command := known.get("command"):
        lines += ["", "```sh", _command(command), "```"]
    if changes := known.get("changes"):
        lines += ["", "The run went on from a checkpoint where not all was as before (there: the checkpoint):", ""]
        lines += [f"- {change}" for change in changes]
    return lines


def _command(argv: Sequence[str]) -> str:
    path = Path(argv[0])
    program = "python -m rgbd_jax.main" if path.parts[-2:] == ("rgbd_jax", "main.py") else shlex.quote(argv[0])
    return " ".join([program, *map(shlex.quote, argv[1:])])


def limits(facts: Facts) -> list[str]:
    """Returns what the weights are meant for, and what was not measured."""
    lines = [
        "Meant for research and trials of motion recognition on clips that each show one motion from start to end.",
        "",
        f"- It always names one of its {facts.classes} classes, also of a clip that shows none of them.",
        "- Not measured: other people, places, cameras and frame rates than the data set's; whether it works equally",
        "  well for all people; long recordings; how well its probabilities are calibrated; its speed and memory.",
    ]
    if facts.field("data.dataset") == "rgbd_demo":
        lines.append("- The demo's clips are rendered: the figures say nothing about videos of real hands.")
    if facts.field("modality") == "fusion":
        lines.append(
            "- Colour and depth must be of the same moment and view. Clips without one of them were not measured."
        )
    elif facts.field("loss.sharpness"):
        lines.append(
            "- Its logits are divided by a temperature below 0.1 (sharpness): probabilities tend to the extremes."
        )
    return [*lines, "- Not for decisions about people, for identifying them, or where a wrong answer does harm."]


def terms(facts: Facts) -> list[str]:
    """Returns whose terms bind the weights, and what to cite."""
    dataset = facts.field("data.dataset")
    where = f" (`datasets/{dataset}/README.md` of rgbd_jax says where they are)" if dataset else ""
    return [
        f"The code, rgbd_jax, is under the MIT licence. Terms of these weights: {UNKNOWN}.",
        f"Those of the data set{where}",
        "and of the weights that the training started from bind whoever hands these on.",
        "",
        f"The method: {PAPER}. The full reference is in `CITATION.cff` of rgbd_jax. Cite the data set too.",
    ]


def percent(share: float | None) -> str | None:
    """Returns a share from 0 to 1 as text, None if it is not known."""
    return None if share is None else f"{share:.2%}"


def _table(rows: Mapping[str, Any]) -> list[str]:
    def cell(value: Any) -> str:
        return UNKNOWN if value is None else " ".join(str(value).replace("|", "\\|").split())

    return ["| | |", "| --- | --- |", *(f"| {name} | {cell(value)} |" for name, value in rows.items())]
