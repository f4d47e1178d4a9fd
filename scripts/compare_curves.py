"""Compares the metrics of two runs: of one process and of four, or before and after a change.

    python scripts/compare_curves.py runs/one runs/four --tolerance 1e-4

Every metric of every line of `metrics.jsonl` is compared, except those of the clock; differences are relative to the
larger of the two values. The exit status is 1 if the runs have other lines or differ by more than the tolerance.
"""

import argparse
import sys
from pathlib import Path

from rgbd_jax.checkpoint.metric_writers import JSONL_FILE, TIMING_METRICS, read_metrics
from rgbd_jax.metrics import from_json

NOT_COMPARED = {"step", "kind", *TIMING_METRICS}


def main() -> None:
    """Compares two runs and prints the largest difference of every metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="WORKDIR", help="two runs")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference that passes (%(default)s)")
    args = parser.parse_args()
    one, other = map(read, args.runs)
    if one.keys() != other.keys():
        step, kind, name = min(one.keys() ^ other.keys())
        sys.exit(f"error: only one of the runs has {kind} {name} at step {step}")
    worst: dict[str, tuple[float, int]] = {}
    beyond = []
    for (step, kind, name), value in sorted(one.items()):
        difference = apart(value, other[step, kind, name])
        worst[f"{kind} {name}"] = max(worst.get(f"{kind} {name}", (-1.0, 0)), (difference, -step))
        beyond += [step] if difference > args.tolerance else []
    print("metric                       largest difference  at step")
    for metric, (difference, step) in worst.items():
        print(f"{metric:28} {difference:18.3g}  {-step:7}")
    print(f"{len(one)} values within {args.tolerance:g}: {f'those before step {beyond[0]}' if beyond else 'all'}")
    sys.exit(bool(beyond))


def read(workdir: Path) -> dict[tuple[int, str, str], float]:
    """Returns the metrics of a run by step, kind and name."""
    if not (rows := read_metrics(workdir)):
        sys.exit(f"error: {workdir / JSONL_FILE} does not exist; expected the folder of a run")
    return {
        (row["step"], row["kind"], name): row[name]
        for row in map(from_json, rows)
        for name in row.keys() - NOT_COMPARED
    }


def apart(a: float, b: float) -> float:
    """Returns the relative difference of two values; infinite where only one is a number."""
    if a == b or (a != a and b != b):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if difference == difference else float("inf")


if __name__ == "__main__":
    main()
