"""The sides of a comparison: each in a process of its own, measured in turn."""

import ctypes
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_objects: list[Any] = []


class Side:
    """An object in a process of its own: the libraries of one side do not slow the other, memory is counted apart.

    `make` makes the object there: a function or class that can be imported.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn)
        self._pool.submit(_make, make, *arguments).result()

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the object and returns its result."""
        return self._pool.submit(_call, method, *arguments).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


def _make(make: Callable[..., Any], *arguments: Any) -> None:
    _objects.append(make(*arguments))


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_objects[0], method)(*arguments)


def seconds_in_turn(
    sides: Mapping[str, Callable[[], float | None]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Returns the seconds of every run of each side; the sides take turns, so that a busy machine is fair to all.

    A side that measures its seconds itself returns them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            measured = run()
            taken = time.perf_counter() - started if measured is None else measured
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def spread(seconds: Sequence[float]) -> str:
    """Returns the median with the smallest and the largest value."""
    digits = 1 if min(seconds) >= 1 else 3
    return f"{statistics.median(seconds):.{digits}f} ({min(seconds):.{digits}f}-{max(seconds):.{digits}f})"


def peak_of_process(run: Callable[[], object]) -> int | None:
    """Returns the most bytes that were resident at once during a run; None where Linux does not count them."""
    if not _CLEAR.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to the system
    _CLEAR.write_text("5")
    run()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[0])
