"""Figures of a training over time, from the lines that it wrote."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

KINDS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Series:
    """One figure over time.

    Attributes:
        steps: training steps after which it was written.
        values: the figure.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


Curves = Mapping[str, Mapping[str, Series]]  # "train" or "validation" -> figure -> its course


def read_curves(path: Path) -> Curves:
    """Returns the figures of a training, by kind and name; a last line that is not whole is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is damaged; names it.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {kind: {} for kind in KINDS}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # a training that runs is writing it, or was killed while it did
        for name, step, kind, value in _figures(line, f"{path}:{number}"):
            found[kind].setdefault(name, []).append((step, value))
    return {
        kind: {
            name: Series(tuple(step for step, _ in points), tuple(value for _, value in points))
            for name, points in of_kind.items()
        }
        for kind, of_kind in found.items()
    }


def _figures(line: str, where: str) -> list[tuple[str, int, str, float]]:
    try:
        written = json.loads(line)
        step, kind = written.pop("step"), written.pop("kind")
        if kind not in KINDS:
            return []
        return [(name, int(step), kind, float(value)) for name, value in written.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{where}: this is no line of figures ({error!r}); expected a JSON object with step and kind: "
            "remove the line"
        ) from error


def steps_per_epoch(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns how many steps an epoch has, from the evaluated epochs of a checkpoint; None without any."""
    known = [epoch["step"] / epoch["epoch"] for epoch in history if epoch.get("epoch")]
    return known[-1] if known else None


def temperatures(config: ConfigDict, last_epoch: float) -> Series:
    """Returns what the logits are divided by in every epoch so far; here `steps` are epochs, counted from 0."""
    from rgbd_jax.optim import logit_temperature

    epochs = range(max(math.ceil(last_epoch), 1))
    return Series(tuple(epochs), tuple(logit_temperature(config, epoch) for epoch in epochs))
