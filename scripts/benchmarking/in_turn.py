"""Runs the sides of a comparison one after the other, again and again, and what is said of the figures."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def seconds_in_turn(
    sides: Mapping[str, Callable[[], float | None]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Returns the seconds of every run of each side; the sides take turns, so that a busy machine is fair to all.

    Args:
        sides: name -> what to run; returns its seconds if it knows better than the clock around it.
        repeats: how often each side is measured.
        warm_up: how often each side is run before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            told = run()
            taken = time.perf_counter() - started if told is None else told
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratio(other: Sequence[float], ours: Sequence[float]) -> float:
    """Returns how many times faster we are, by the medians."""
    return statistics.median(other) / statistics.median(ours)


def spread(seconds: Sequence[float], unit: float = 1.0) -> str:
    """Returns the median with the smallest and the largest value, in a unit of so many seconds."""
    ordered = sorted(value / unit for value in seconds)
    digits = 1 if ordered[0] >= 1 else 3
    return f"{statistics.median(ordered):.{digits}f} ({ordered[0]:.{digits}f}-{ordered[-1]:.{digits}f})"
