"""Tables of the page: what the figures show, in numbers that can be sorted and searched."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rgbd_jax.tools.report.classes import ClassFigures, ConfusedPair
from rgbd_jax.tools.report.comparison import Compared, Comparison
from rgbd_jax.tools.report.heads import HeadFigures, head_name

MOST_COUNTED = 30  # classes of a confusion matrix that is written out


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what stands in it.
        order: what the table is sorted by; None where it is the text.
        share: length of a bar behind the text, from 0 to 1; None: no bar.
    """

    text: str
    order: float | None = None
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its head.

    Attributes:
        name: its id on the page.
        caption: what it holds.
        columns: titles.
        rows: cells of each row.
        searched: what the search field looks for, "" without one.
        sortable: whether rows can be sorted by a column.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    searched: str = ""
    sortable: bool = True


def percent(share: float) -> str:
    """Returns a share as the page writes it; a dash where there is none."""
    return "\N{EN DASH}" if math.isnan(share) else f"{share:.1%}"


def count(number: int, share: float | None = None) -> Cell:
    """Returns a cell with a whole number."""
    return Cell(f"{number:,}".replace(",", "\u202f"), float(number), share)


def ratio(share: float, *, bar: bool = False) -> Cell:
    """Returns a cell with a share; one that is not a number is sorted below all others."""
    missing = math.isnan(share)
    return Cell(percent(share), -1.0 if missing else share, share if bar and not missing else None)


def class_table(figures: ClassFigures, counts: Int[np.ndarray, "k k"], names: Sequence[str]) -> Table:
    """Returns the figures of every class, the one that is recognised least first."""
    rows = []
    for label in np.argsort(np.nan_to_num(figures.accuracy, nan=2.0), kind="stable"):
        errors = counts[label].copy()
        errors[label] = 0
        taken = int(errors.argmax())
        mostly = Cell(f"{names[taken]} ({errors[taken]})") if errors[taken] else Cell("")
        rows.append(
            (
                Cell(names[label]), count(int(figures.clips[label])), ratio(float(figures.accuracy[label]), bar=True),
                ratio(float(figures.precision[label]), bar=True), count(int(figures.predicted[label])), mostly,
            )
        )  # fmt: skip
    columns = ("class", "clips", "accuracy", "precision", "predicted", "most taken for")
    return Table("table-classes", "Every class", columns, tuple(rows), searched="class")


def pair_table(pairs: Sequence[ConfusedPair], names: Sequence[str]) -> Table:
    """Returns the most confused pairs."""
    most = max((pair.clips for pair in pairs), default=1)
    rows = tuple(
        (
            Cell(names[pair.true]), Cell(names[pair.predicted]), count(pair.clips, pair.clips / most),
            ratio(pair.share), count(pair.back),
        )
        for pair in pairs
    )  # fmt: skip
    columns = ("true class", "taken for", "clips", "of the class", "other way round")
    return Table("table-pairs", "Most confused pairs", columns, rows, searched="class")


def count_table(counts: Int[np.ndarray, "k k"], names: Sequence[str]) -> Table | None:
    """Returns the confusion matrix in numbers; None where there are too many classes to read them."""
    if len(counts) > MOST_COUNTED:
        return None
    rows = tuple((Cell(name), *(count(int(n)) for n in row)) for name, row in zip(names, counts, strict=True))
    caption = "Clips by true class (row) and predicted class (column)"
    return Table("table-confusion", caption, ("true class", *names), rows, sortable=False)


def history_table(history: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the validation figures of every evaluated epoch."""
    known = [name for name in history[-1] if name not in ("step", "epoch", "clips", "views")]
    numeric = [name for name in known if isinstance(history[-1][name], int | float)]
    shares = {name for name in numeric if name.startswith(("top", "mean_per", "reference_"))}
    rows = tuple(
        (
            Cell(str(epoch["epoch"]), epoch["epoch"]), count(epoch["step"]),
            *(
                ratio(float(epoch.get(name, math.nan))) if name in shares
                else Cell(f"{epoch.get(name, math.nan):.4g}", epoch.get(name, math.nan))
                for name in numeric
            ),
        )
        for epoch in history
    )  # fmt: skip
    titles = [name.replace("_", " ").replace("top1", "top-1").replace("top5", "top-5") for name in numeric]
    return Table("table-history", "Validation after each epoch", ("epoch", "step", *titles), rows)


def head_table(figures: Sequence[HeadFigures], stream: str) -> Table:
    """Returns what each head recognises beside the decision."""
    rows = tuple(
        (Cell(head_name(head.name, stream)), ratio(head.top1, bar=True), count(head.saves), count(head.spoils))
        for head in figures
    )
    columns = ("head", "top-1", "right where the decision is wrong", "wrong where the decision is right")
    return Table("table-heads", "Heads beside the decision", columns, rows)


def comparison_table(comparison: Comparison) -> Table:
    """Returns runs, heads and sums beside each other."""

    def cells(row: Compared) -> tuple[Cell, ...]:
        unknown = Cell("", -1.0)
        step, alone = count(row.step) if row.step else unknown, unknown if row.alone is None else count(row.alone)
        shares = ratio(row.top1, bar=True), ratio(row.top5), ratio(row.mean_per_class)
        return Cell(row.name), Cell(row.stream), step, *shares, alone

    rows = tuple(cells(row) for row in comparison.rows)
    columns = ("run", "modality", "step", "top-1", "top-5", "mean per class", "clips that it alone gets right")
    return Table("table-comparison", "Runs and sums", columns, rows)


def class_comparison_table(by_class: Mapping[str, Float[np.ndarray, "k"]], names: Sequence[str]) -> Table:
    """Returns the accuracy of every class by run, those that differ most first."""
    values = np.stack(list(by_class.values()))  # r k
    spread = np.nan_to_num(values.max(0) - values.min(0), nan=-1.0)
    rows = tuple(
        (
            Cell(names[label]), *(ratio(float(value), bar=True) for value in values[:, label]),
            ratio(float(values[:, label].max() - values[:, label].min())),
        )
        for label in np.argsort(-spread, kind="stable")
    )  # fmt: skip
    columns = ("class", *by_class, "difference")
    return Table("table-class-comparison", "Accuracy of every class by run", columns, rows, searched="class")
