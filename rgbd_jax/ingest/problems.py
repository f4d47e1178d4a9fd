"""What is wrong with raw data: collected, so that everything is reported at once."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from rgbd_jax.printable import printable

Kind = Literal["missing", "unreadable", "unpaired", "mislabelled", "duplicated"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of the columns of tables

_SHOWN = 20  # problems in the message of an error


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with raw data."""

    where: str  # the file at fault, with the line ("train.txt:3") where it has lines
    what: str  # what was found and what was expected
    kind: Kind = "unreadable"
    skippable: bool = True  # it concerns one clip, which can be left out
    split: str = ""  # of the clip, "" if that is not known

    def __str__(self) -> str:
        return printable(f"{self.where}: {self.what}")


class LabelError(ValueError):
    """A line of a list has a label that does not exist."""


class RawDataError(ValueError):
    """Raw data that cannot be used: the first `problems` in full, the number of the others."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > 1:
            lines.insert(0, f"{len(self.problems)} problems with the raw data:")
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN} more")
        if all(problem.skippable for problem in self.problems):
            lines.append("Correct them, or set skip_bad_clips to leave bad clips out.")
        super().__init__("\n  ".join(lines))


def bad_clip(where: str | Path, what: str, kind: Kind = "unreadable") -> RawDataError:
    """Returns the error for one clip, which can be left out."""
    return RawDataError([Problem(str(where), what, kind)])


def bad_data(where: str | Path, what: str) -> RawDataError:
    """Returns the error for what concerns more than one clip."""
    return RawDataError([Problem(str(where), what, skippable=False)])


def clip_problems(error: RawDataError | OSError, where: str, split: str) -> list[Problem]:
    """Returns why a clip of `split`, which `where` names, cannot be used."""
    found = error.problems if isinstance(error, RawDataError) else [Problem(where, f"cannot be read: {error}")]
    return [dataclasses.replace(problem, split=split) for problem in found]
