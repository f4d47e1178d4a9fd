"""A figure of the page: what plotly draws, and what stands around it. Colours are names that the page's style knows."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

COLOURS = tuple(f"var(--c{number})" for number in range(1, 8))
RIGHT, WRONG, MUTED = "var(--right)", "var(--wrong)", "var(--muted)"
HEAT = [[0.0, "var(--h0)"], [0.2, "var(--h1)"], [0.5, "var(--h2)"], [0.8, "var(--h3)"], [1.0, "var(--h4)"]]
RARE_HEAT = [[0.0, "var(--h0)"], [0.08, "var(--h1)"], [0.25, "var(--h2)"], [0.6, "var(--h3)"], [1.0, "var(--h4)"]]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: its id on the page.
        title: a few words above it.
        figure: what plotly draws.
        summary: what it shows, for those who cannot see it.
        caption: how to read it, below it.
        height: pixels; of a square figure the most that it takes.
        square: whether it is as high as wide.
        extra: what the page's script needs beside the figure, JSON-able.
    """

    name: str
    title: str
    figure: go.Figure
    summary: str
    caption: str = ""
    height: int = 320
    square: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def json(self) -> Markup:
        """The figure as JSON that can stand inside a script element, whatever the names in it are."""
        return embedded(self.figure.to_json())

    @property
    def extra_json(self) -> Markup:
        """`extra` in the same way."""
        return embedded(json.dumps(self.extra))


def embedded(text: str) -> Markup:
    """Returns JSON that cannot end the script element that it stands in."""
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def plain(text: str) -> str:
    """Returns a name as plotly shows it: not as markup, and not as a part of a template."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%&#123;")


def shortened(text: str, most: int = 24) -> str:
    """Returns a name as plotly shows it, cut where it is too long for an axis."""
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def new_figure(*, x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """Returns an empty figure with titles of its axes; the page's script adds fonts, colours and margins."""
    figure = go.Figure(layout={"template": "none", **layout})
    figure.update_xaxes(title_text=x).update_yaxes(title_text=y)
    return figure


def matrix(
    values: Any, names: Sequence[str], hover: str, *, lowest: float = 0.0, highest: float = 1.0, texts: str = ""
) -> go.Heatmap:
    """Returns a small matrix with its values in the cells, first row on top.

    Args:
        values: n n.
        names: of rows and columns.
        hover: plotly's template of what is told of a cell.
        lowest: value of the faintest colour.
        highest: value of the strongest colour.
        texts: plotly's template of what stands in a cell.
    """
    return go.Heatmap(
        z=values, x=list(names), y=list(names), colorscale=HEAT, zmin=lowest, zmax=highest, showscale=False,
        hovertemplate=hover, texttemplate=texts, xgap=2, ygap=2,
    )  # fmt: skip
