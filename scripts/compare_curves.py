"""Says how far the figures of two runs lie apart: of one process and of four, or before and after a change.

    python scripts/compare_curves.py runs/one runs/four --tolerance 1e-4

Every figure of every line of `metrics.jsonl` is compared, but for what depends on the clock; differences are shares of
the larger of the two values. A table goes to stdout; the exit status is 1 if the runs have other lines, or differ by
more than the tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

from rgbd_jax.checkpoint.metric_writers import TIMING_METRICS

Lines = dict[tuple[int, str], dict[str, float]]


def main() -> None:
    """Compares what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path, help="folder of a run")
    parser.add_argument("other", type=Path, help="folder of another run")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference that passes (%(default)s)")
    arguments = parser.parse_args()
    one, other = read(arguments.one), read(arguments.other)
    if one.keys() != other.keys():
        step, kind = min(one.keys() ^ other.keys())
        sys.exit(f"error: only one of them has a line of {kind} figures at step {step}")
    worst: dict[str, tuple[float, int]] = {}
    beyond = None
    for (step, kind), figures in sorted(one.items()):
        if figures.keys() != other[step, kind].keys():
            sys.exit(f"error: at step {step} the runs have other {kind} figures: {sorted(figures)}")
        for name, value in figures.items():
            difference = apart(value, other[step, kind][name])
            if difference > worst.get(f"{kind} {name}", (-1.0, 0))[0]:
                worst[f"{kind} {name}"] = difference, step
            if difference > arguments.tolerance and beyond is None:
                beyond = step
    print("figure                       largest difference  at step")
    for name, (difference, step) in worst.items():
        print(f"{name:28} {difference:18.3g}  {step:7}")
    told = "all of them" if beyond is None else f"those before step {beyond}"
    print(f"{len(one)} lines, within {arguments.tolerance:g}: {told}")
    sys.exit(beyond is not None)


def read(workdir: Path) -> Lines:
    """Returns the figures of a run by step and kind.

    Raises:
        SystemExit: there are none.
    """
    file = workdir / "metrics.jsonl"
    if not file.exists():
        sys.exit(f"error: {file} does not exist; expected the folder of a run")
    lines: Lines = {}
    for line in map(json.loads, file.read_text().splitlines()):
        step, kind = line.pop("step"), line.pop("kind")
        lines[step, kind] = {name: value for name, value in line.items() if name not in TIMING_METRICS}
    return lines


def apart(a: float, b: float) -> float:
    """Returns the difference of two figures as a share of the larger; infinite where one alone is not a number."""
    if a == b or (a != a and b != b):
        return 0.0
    share = abs(a - b) / max(abs(a), abs(b))
    return share if share == share else float("inf")


if __name__ == "__main__":
    main()
