"""Validation accuracies of trainings by both sides: reading them, their table and their picture."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from plotly.subplots import make_subplots
from scipy.stats import ttest_ind

SIDES = ("ours", "reference")
PROTOCOLS = {"top1": "each clip once", "reference_protocol": "the reference's protocol"}
_COLOURS = {"ours": "31, 95, 191", "reference": "217, 130, 43"}


class Accuracies(TypedDict):
    """One training."""

    epochs: dict[str, list[float]]  # protocol -> accuracy (0 to 1) by epoch; each side reports the reference's itself
    seconds: float | None  # training and evaluation; None for a training that was resumed


Results = dict[str, dict[str, list[Accuracies]]]  # modality -> side -> by seed


def read_results(workdir: Path, modalities: Sequence[str], seeds: int) -> Results:
    """Returns the results that `train_beside.py` has written."""

    def read(modality: str, side: str) -> list[Accuracies]:
        files = [workdir / modality / f"{side}_{seed}.json" for seed in range(seeds)]
        return [json.loads(file.read_text()) for file in files]

    return {modality: {side: read(modality, side) for side in SIDES} for modality in modalities}


def table(results: Results) -> str:
    """Returns mean and standard deviation over the seeds of either side, and the difference of the means.

    The 95 % interval of the difference is Welch's, which needs two seeds.
    """
    rows: dict[str, Callable[[dict[str, list[float]]], float]] = {
        "last epoch, each clip once": lambda epochs: epochs["top1"][-1],
        "last epoch, the reference's protocol": lambda epochs: epochs["reference_protocol"][-1],
        "best epoch by the reference's protocol": lambda epochs: max(epochs["reference_protocol"]),
        "the same epoch, each clip once": lambda epochs: epochs["top1"][np.argmax(epochs["reference_protocol"])],
    }
    lines = ["| | ours | reference | ours - reference |", "| --- | --- | --- | --- |"]
    for modality, sides in results.items():
        for row, value in rows.items():
            ours, theirs = ([100 * value(run["epochs"]) for run in sides[side]] for side in SIDES)
            difference = f"{np.mean(ours) - np.mean(theirs):+.1f}"
            if len(ours) > 1:
                low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval()
                difference += f" ({low:+.1f} to {high:+.1f})"
            lines.append(f"| {modality}, {row}, % | {_spread(ours)} | {_spread(theirs)} | {difference} |")
        minutes = [[run["seconds"] / 60 for run in sides[side] if run["seconds"] is not None] for side in SIDES]
        lines.append(f"| {modality}, minutes a seed | {_spread(minutes[0])} | {_spread(minutes[1])} | |")
    return "\n".join(lines)


def draw(results: Results, file: Path) -> None:
    """Draws accuracy by epoch: the mean over the seeds, and from the lowest to the highest."""
    titles = [f"{modality}, {title}" for title in PROTOCOLS.values() for modality in results]
    figure = make_subplots(rows=len(PROTOCOLS), cols=len(results), shared_yaxes="all", subplot_titles=titles)
    for row, protocol in enumerate(PROTOCOLS, 1):
        for column, sides in enumerate(results.values(), 1):
            for side, colour in _COLOURS.items():
                curves = 100 * np.array([run["epochs"][protocol] for run in sides[side]])  # seed epoch
                epochs = np.arange(1, curves.shape[1] + 1)
                band = {"x": np.r_[epochs, epochs[::-1]], "y": np.r_[curves.max(0), curves.min(0)[::-1]]}
                style = {"fill": "toself", "fillcolor": f"rgba({colour}, 0.2)", "line_width": 0, "hoverinfo": "skip"}
                figure.add_scatter(**band, **style, mode="lines", showlegend=False, row=row, col=column)
                line = {"x": epochs, "y": curves.mean(0), "line_color": f"rgb({colour})", "name": side}
                figure.add_scatter(**line, mode="lines", showlegend=row == column == 1, row=row, col=column)
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="top-1, %", col=1)
    figure.update_layout(template="plotly_white", height=640)
    figure.write_html(file)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
