"""Validation accuracies of trainings by both sides: reading them, their table and their picture."""

import json
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TypedDict

import numpy as np
from plotly.subplots import make_subplots
from scipy.stats import ttest_ind

SIDES = ("ours", "reference")
PROTOCOLS = {"top1": "each clip once", "reference_protocol": "the reference's protocol"}
_COLOURS = ("31, 95, 191", "217, 130, 43", "44, 140, 80", "150, 70, 160", "190, 60, 60", "110, 110, 110")


class Accuracies(TypedDict):
    """One training."""

    epochs: dict[str, list[float]]  # protocol -> accuracy (0 to 1) by epoch; each side reports the reference's itself
    seconds: float | None  # training and evaluation; None for a training that was resumed


Results = dict[str, dict[str, list[Accuracies]]]  # modality -> side or variant -> by seed


def read_results(workdir: Path, modalities: Sequence[str]) -> Results:
    """Returns all results that `train_beside.py` has written."""
    results: Results = {modality: {} for modality in modalities}
    for modality, sides in results.items():
        for file in sorted((workdir / modality).glob("*_*.json")):
            side, _ = file.stem.rsplit("_", 1)
            sides.setdefault(side, []).append(json.loads(file.read_text()))
    return results


def table(results: Results, other: str) -> str:
    """Returns mean and standard deviation over the seeds of ours and of another side, and the difference of the means.

    The best epoch is that of the highest accuracy by the reference's protocol. The 95 % interval of the difference is
    Welch's, which needs two seeds of either. Modalities that were not trained by both are left out.
    """
    rows: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "last epoch, each clip once, %": lambda once, protocol: once[-1],
        "last epoch, the reference's protocol, %": lambda once, protocol: protocol[-1],
        "last epoch, the protocol's excess, points": lambda once, protocol: protocol[-1] - once[-1],
        "best epoch, each clip once, %": lambda once, protocol: once[protocol.argmax()],
        "best epoch, the reference's protocol, %": lambda once, protocol: protocol.max(),
        "best epoch, the protocol's excess, points": lambda once, protocol: protocol.max() - once[protocol.argmax()],
    }
    lines = [f"| | ours | {other} | ours - {other} |", "| --- | --- | --- | --- |"]
    for modality, sides in results.items():
        if not ("ours" in sides and other in sides):
            continue
        both = sides["ours"], sides[other]
        lines.append(f"| {modality}, seeds | {len(both[0])} | {len(both[1])} | |")
        for row, value in rows.items():
            ours, theirs = (
                [100 * value(*(np.array(run["epochs"][protocol]) for protocol in PROTOCOLS)) for run in side]
                for side in both
            )
            difference = f"{np.mean(ours) - np.mean(theirs):+.1f}"
            if min(len(ours), len(theirs)) > 1:
                low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval()
                difference += f" ({low:+.1f} to {high:+.1f})"
            lines.append(f"| {modality}, {row} | {_spread(ours)} | {_spread(theirs)} | {difference} |")
        minutes = [[run["seconds"] / 60 for run in side if run["seconds"] is not None] for side in both]
        lines.append(f"| {modality}, minutes a seed | {_spread(minutes[0])} | {_spread(minutes[1])} | |")
    return "\n".join(lines)


def draw(results: Results, file: Path) -> None:
    """Draws accuracy by epoch: the mean over the seeds, and from the lowest to the highest."""
    titles = [f"{modality}, {title}" for title in PROTOCOLS.values() for modality in results]
    colours = dict(zip(dict.fromkeys(side for sides in results.values() for side in sides), cycle(_COLOURS)))
    named: set[str] = set()
    figure = make_subplots(rows=len(PROTOCOLS), cols=len(results), shared_yaxes="all", subplot_titles=titles)
    for row, protocol in enumerate(PROTOCOLS, 1):
        for column, sides in enumerate(results.values(), 1):
            for side, runs in sides.items():
                curves = 100 * np.array([run["epochs"][protocol] for run in runs])  # seed epoch
                colour = colours[side]
                epochs = np.arange(1, curves.shape[1] + 1)
                band = {"x": np.r_[epochs, epochs[::-1]], "y": np.r_[curves.max(0), curves.min(0)[::-1]]}
                style = {
                    "legendgroup": side,
                    "fill": "toself",
                    "fillcolor": f"rgba({colour}, 0.2)",
                    "line_width": 0,
                    "hoverinfo": "skip",
                }
                figure.add_scatter(**band, **style, mode="lines", showlegend=False, row=row, col=column)
                line = {
                    "x": epochs,
                    "y": curves.mean(0),
                    "line_color": f"rgb({colour})",
                    "name": side,
                    "legendgroup": side,
                }
                figure.add_scatter(**line, mode="lines", showlegend=side not in named, row=row, col=column)
                named.add(side)
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="top-1, %", col=1)
    figure.update_layout(template="plotly_white", height=640)
    figure.write_html(file, config={"displayModeBar": False})


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
