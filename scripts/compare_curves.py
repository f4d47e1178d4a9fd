"""Compares the metrics of two runs: of one process and of four, or before and after a change.

    python scripts/compare_curves.py runs/one runs/four --tolerance 1e-4

Every metric of every line of `metrics.jsonl` is compared, except those of the clock; differences are relative to the
larger of the two values. The exit status is 1 if the runs have other lines or differ by more than the tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

NOT_COMPARED = {"step", "kind", "clips_per_second", "input_wait_fraction"}  # where they stand, and the clock's


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
    file = workdir / "metrics.jsonl"
    if not file.exists():
        sys.exit(f"error: {file} does not exist; expected the folder of a run")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    values = {(line["step"], line["kind"], name): line[name] for line in lines for name in line.keys() - NOT_COMPARED}
    return {where: float("nan") if value is None else value for where, value in values.items()}


def apart(a: float, b: float) -> float:
    """Returns the relative difference of two values; infinite where only one is a number."""
    if a == b or (a != a and b != b):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if difference == difference else float("inf")


if __name__ == "__main__":
    main()
