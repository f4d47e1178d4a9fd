"""What is wrong with raw data: collected, so that all of it is told at once."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

Kind = Literal["missing", "unreadable", "unpaired", "mislabelled", "duplicated"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of problems, in the order in which tables show them."""

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with raw data.

    Attributes:
        where: the file at fault, and the line ("train.txt:3") where it has lines.
        what: what was found and what was expected.
        one_clip: whether it concerns one clip only, which can be left out.
        kind: "missing" (a clip or frames that should be there), "unreadable" (a file or line that cannot be used),
            "unpaired" (rgb and depth do not go together), "mislabelled" or "duplicated".
        split: the split of the clip at fault, "" where that is not known.
    """

    where: str
    what: str
    one_clip: bool = True
    kind: Kind = "unreadable"
    split: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def in_split(split: str, problems: Iterable[Problem]) -> list[Problem]:
    """Returns the problems as those of clips of `split`."""
    return [dataclasses.replace(problem, split=split) for problem in problems]


class LabelError(ValueError):
    """A line of a list has a label that there is not."""


def line_problem(where: str, error: ValueError, content: str = "") -> Problem:
    """Returns what is wrong with a line of a list: `error`, in `content` where that is told."""
    what = f"{error} in {content!r}" if content else str(error)
    return Problem(where, what, kind="mislabelled" if isinstance(error, LabelError) else "unreadable")


class RawDataError(ValueError):
    """Raw data that cannot be used.

    Attributes:
        problems: everything found.
    """

    def __init__(self, problems: Sequence[Problem]):
        """Describes the first problems in full and counts the rest."""
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > 1:
            lines.insert(0, f"{len(self.problems)} problems with the raw data:")
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN} more")
        if all(problem.one_clip for problem in self.problems):
            lines.append("Correct them, or set skip_bad_clips to leave bad clips out.")
        super().__init__("\n  ".join(lines))

    def __reduce__(self):
        return type(self), (self.problems,)  # worker processes raise it
