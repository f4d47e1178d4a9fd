"""Figures of the training: losses, accuracies, and what the optimizer did."""

import plotly.graph_objects as go
from ml_collections import ConfigDict

from rgbd_jax.tools.report.chart import COLOURS, MUTED, Chart, new_figure
from rgbd_jax.tools.report.curves import Curves, Series, temperatures

BLUE, ORANGE, TEAL, VIOLET, PINK, GOLD, *_ = COLOURS
# Validation figure -> what it is called, its colour.
ACCURACIES = {
    "top1": ("validation top-1", BLUE),
    "top5": ("validation top-5", MUTED),
    "top1_small": ("small branch", TEAL),
    "top1_medium": ("medium branch", VIOLET),
    "top1_large": ("large branch", PINK),
    "top1_rgb": ("RGB stream", TEAL),
    "top1_depth": ("depth stream", VIOLET),
    "top1_all": ("fused + RGB + depth", PINK),
}


def training_charts(
    curves: Curves, config: ConfigDict, steps_per_epoch: float | None, best_step: int | None
) -> list[Chart]:
    """Returns the figures of a training.

    Args:
        curves: its figures.
        config: its config.
        steps_per_epoch: None where it is not known; then the axis counts steps, and the temperature is left out.
        best_step: step of the checkpoint that the report is of.
    """
    scale, unit = (steps_per_epoch, "epoch") if steps_per_epoch else (1.0, "step")
    train, validation = curves["train"], curves["validation"]
    drawing = _Drawing(scale, unit, best_step)
    losses = drawing.start("loss")
    for name, title, dash in (("loss", "loss", "solid"), ("cross_entropy", "cross entropy", "dot")):
        drawing.line(losses, train.get(name), f"training {title}", ORANGE, dash=dash)
        drawing.line(losses, validation.get(name), f"validation {title}", BLUE, dash=dash, marked=True)
    accuracies = drawing.start("share of the clips", percent=True)
    drawing.line(accuracies, train.get("top1"), "training top-1", ORANGE, width=1)
    for name, (title, colour) in ACCURACIES.items():
        width = 3.0 if name == "top1" else 1.5
        drawing.line(accuracies, validation.get(name), title, colour, width=width, marked=name == "top1")
    charts = [
        Chart(
            "chart-loss", "Loss", losses, f"Training and validation loss over {unit}s.",
            "The loss is what was minimised: cross entropies of the decision and the heads, and distillation. Cross "
            "entropy alone (dotted) is comparable between runs.",
        ),
        Chart(
            "chart-accuracy", "Accuracy", accuracies, f"Training and validation accuracy over {unit}s.",
            "Training top-1 is of augmented clips, with dropout and before each step: it may lie below validation. "
            "The dashed line marks the checkpoint of this page.",
        ),
    ]  # fmt: skip
    charts += _small_charts(drawing, curves, config, steps_per_epoch)
    return [chart for chart in charts if chart.figure.data]


def _small_charts(
    drawing: "_Drawing", curves: Curves, config: ConfigDict, steps_per_epoch: float | None
) -> list[Chart]:
    rate = drawing.start("")
    drawing.line(rate, curves["train"].get("learning_rate"), "learning rate", BLUE)
    rate.update_layout(showlegend=False).update_yaxes(rangemode="tozero", exponentformat="power")
    norm = drawing.start("")
    drawing.line(norm, curves["train"].get("gradient_norm"), "gradient norm", VIOLET)
    clip = config.optimizer.gradient_clip
    if clip and norm.data:
        norm.add_hline(y=clip, line={"color": MUTED, "dash": "dash", "width": 1})
    norm.update_layout(showlegend=False).update_yaxes(rangemode="tozero")
    charts = [
        Chart("chart-rate", "Learning rate", rate, "Learning rate over the training.", height=240),
        Chart(
            "chart-norm", "Gradient norm", norm, "Norm of the gradient over the training.",
            f"Before it was clipped to {clip:g} (dashed)." if clip else "Gradients were not clipped.", height=240,
        ),
    ]  # fmt: skip
    steps = curves["train"].get("loss", Series((), ())).steps
    if steps_per_epoch and steps and config.modality != "fusion":
        temperature = temperatures(config, steps[-1] / steps_per_epoch)
        figure = drawing.start("")
        figure.add_scatter(
            x=[*temperature.steps, temperature.steps[-1] + 1], y=[*temperature.values, temperature.values[-1]],
            line={"color": TEAL, "shape": "hv"}, name="temperature", mode="lines", hovertemplate="%{y:.4g}",
        ).update_layout(showlegend=False).update_yaxes(rangemode="tozero")  # fmt: skip
        said = (
            "Logits are divided by it; computed from the config."
            if config.loss.sharpness
            else "config.loss.sharpness is off: logits are not divided."
        )
        charts.insert(1, Chart("chart-temperature", "Temperature of the logits", figure, said, said, height=240))
    return charts


class _Drawing:
    """What the figures of a training share: their axis of time."""

    def __init__(self, scale: float, unit: str, best_step: int | None):
        self._scale = scale
        self._unit = unit
        self._best = None if best_step is None else best_step / scale

    def start(self, y: str, *, percent: bool = False) -> go.Figure:
        """Returns an empty figure over time."""
        figure = new_figure(x=self._unit, y=y, hovermode="x unified")
        if percent:
            figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
        if self._best is not None:
            figure.add_vline(x=self._best, line={"color": MUTED, "dash": "dash", "width": 1})
        return figure

    def line(
        self, figure: go.Figure, series: Series | None, name: str, colour: str, *, dash: str = "solid",
        width: float = 2.0, marked: bool = False,
    ) -> None:  # fmt: skip
        """Adds a figure's course, if there is one."""
        if series is None or not series.steps:
            return
        form = "%{y:.1%}" if figure.layout.yaxis.tickformat == ".0%" else "%{y:.4g}"
        figure.add_scatter(
            x=[step / self._scale for step in series.steps], y=series.values, name=name, hovertemplate=form,
            mode="lines+markers" if marked or len(series.steps) == 1 else "lines",
            line={"color": colour, "dash": dash, "width": width}, marker={"size": 5},
        )  # fmt: skip
