"""What is wrong with raw data: collected, so that all of it is told at once."""

import dataclasses
from collections.abc import Sequence

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with raw data.

    Attributes:
        where: the file at fault, and the line ("train.txt:3") where it has lines.
        what: what was found and what was expected.
        one_clip: whether it concerns one clip only, which can be left out.
    """

    where: str
    what: str
    one_clip: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


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
