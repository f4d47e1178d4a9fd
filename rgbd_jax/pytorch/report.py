"""The table that says what became of the tensors of a checkpoint."""

import math
import re
from collections.abc import Iterable, Mapping

from rgbd_jax.pytorch.detect import DetectedNetwork
from rgbd_jax.pytorch.name_table import STREAM_PREFIXES
from rgbd_jax.pytorch.state_dict import UNKNOWN, Match
from rgbd_jax.pytorch.weights import TrainedWeights

SHOWN = 20  # names that are listed of the skipped and of the missing tensors
PARTS = (  # part of the network -> its tensors by the reference's names
    ("spatial network", r"(Conv3d_|Mixed_|LinearMap|frp_module).*"),
    ("recoupling", r"dtn\.rcm\..*"),
    ("class heads", r"dtn\.mlp_head.*|classifier.*"),
    ("temporal branches", r"dtn\..*"),
    ("fusion", r".*"),
)


def describe(detected: DetectedNetwork, trained: TrainedWeights) -> str:
    """Returns what a checkpoint holds, in one line."""
    model = detected.model
    facts = [
        "RGB-D fusion" if detected.fusion else "one stream",
        f"{model['num_classes']} classes",
        f"{detected.frames or 'any number of'} frames",
        f"{model['temporal_blocks']} temporal blocks",
        f"{model['attention_heads']} attention heads",
        f"{model.get('recoupling_heads', 'no')} recoupling heads",
    ]
    if model["width"] != 1:
        facts.append(f"width {model['width']:.4g}")
    if trained.epoch is not None:
        facts.append(f"{trained.epoch} epochs")
    if trained.best_accuracy is not None:
        facts.append(f"best accuracy {trained.best_accuracy:g}")
    facts.append(f"momentum of {len(trained.momentum)} parameters" if trained.momentum else "no momentum")
    return ", ".join(facts)


def table(match: Match, left_out: Iterable[str] = ()) -> str:
    """Returns the table: part by part what was loaded, then what was skipped and why, and what is missing."""
    rows = [("loaded", "tensors", "numbers")]
    for part, tensors in _by_part(match.loaded).items():
        rows.append((part, str(len(tensors)), f"{sum(map(math.prod, tensors.values())):,}"))
    total = sum(map(math.prod, match.loaded.values()))
    rows.append(("all", str(len(match.loaded)), f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    # What the network has no place for comes last: a deeper network alone can have hundreds of such tensors.
    reasons = sorted(match.skipped.items(), key=lambda item: item[1] == UNKNOWN)
    skipped = [*left_out, *(f"{name}: {why}" for name, why in reasons)]
    missing = [f"{name} {shape}" for name, shape in match.missing.items()]
    for title, names in (("skipped", skipped), ("missing", missing)):
        lines.append(f"{title}: {len(names) or 'nothing'}")
        lines += [f"  {name}" for name in names[:SHOWN]]
        lines += [f"  and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
    return "\n".join(lines)


def _by_part(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        stream = next((stream for stream, prefix in STREAM_PREFIXES.items() if name.startswith(f"{prefix}.")), "")
        plain = name.removeprefix(f"{STREAM_PREFIXES[stream]}.") if stream else name
        part = next(part for part, pattern in PARTS if re.fullmatch(pattern, plain))
        parts.setdefault(f"{stream} {part}".lstrip(), {})[name] = shape
    return parts
