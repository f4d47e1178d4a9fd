"""Measures how time and memory of a clip grow with its frames and size, with the batch and with the devices.

    python scripts/cost_curves.py --out docs/cost.json --picture docs/cost.html

Varies one of the four at a time around 32 frames of 112x112 in batches of 2 (of 16 for the devices) with
`scripts/benchmark.py train infer`; points that are in the file already are not measured again. The branches see a
quarter, a half and three quarters of the frames, as in the paper's network. The table goes to stdout.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

BASE = {"frames": 32, "size": 112, "batch": 2, "devices": 1}
POINTS = {  # what grows -> the points
    "frames of a clip": [{**BASE, "frames": n} for n in (16, 32, 64, 128)],
    "height and width, pixels": [{**BASE, "size": n} for n in (112, 160, 224, 320)],
    "clips of a batch": [{**BASE, "batch": n} for n in (1, 2, 4, 8, 16)],
    "simulated devices, batch of 16": [{**BASE, "batch": 16, "devices": n} for n in (1, 2, 4, 8)],
}
FIELDS = dict(zip(POINTS, BASE, strict=True))


def main() -> None:
    """Measures what is missing, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of the measurements (JSON)")
    parser.add_argument("--picture", type=Path, help="file of the curves (HTML)")
    parser.add_argument("--config", default="configs/nvgesture.py", help="of the network (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="how often each point is measured (%(default)s)")
    args = parser.parse_args()
    measured: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for point in (point for points in POINTS.values() for point in points):
        if name(point) not in measured:
            measured[name(point)] = measure(point, args.config, args.repeats)
            args.out.write_text(json.dumps(measured, indent=1) + "\n")
            print(f"measured {name(point)}", file=sys.stderr)
    print("| | training step, s a clip | GB a clip | inference, s a clip | GB a clip |")
    print("| --- | --- | --- | --- | --- |")
    for title, points in POINTS.items():
        print(f"| **{title}** | | | | |")
        for point in points:
            costs = [measured[name(point)][part] for part in ("train", "infer")]
            cells = [f"{cost['seconds']:.3g} | {cost['bytes'] / 1e9:.3g}" for cost in costs]
            print(f"| {point[FIELDS[title]]} | {' | '.join(cells)} |")
    if args.picture:
        draw(measured, args.picture)


def name(point: dict[str, int]) -> str:
    """Returns the name of a point in the file."""
    return ",".join(f"{field}={value}" for field, value in point.items())


def measure(point: dict[str, int], config: str, repeats: int) -> dict[str, Any]:
    """Returns seconds and bytes of a clip of a training step and of an inference."""
    frames = point["frames"]
    command = [sys.executable, str(Path(__file__).parent / "benchmark.py"), "train", "infer", "--json"]
    command += [f"--config={config}", f"--config.clip.frames={frames}", f"--config.clip.size={point['size']}"]
    command += [f"--config.model.branch_frames=({frames // 4}, {frames // 2}, {3 * frames // 4})"]
    command += [f"--repeats={repeats}", f"--batch={point['batch']}", f"--devices={point['devices']}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name(point)}: {done.stderr.strip()}")
    costs = {}
    for part, row in json.loads(done.stdout)["rows"].items():
        totals = {"seconds": statistics.median(row["seconds"]["ours"]), "bytes": row["peak_bytes"]["ours"]}
        costs[part] = {quantity: total / point["batch"] for quantity, total in totals.items()}
    return costs


def draw(measured: dict[str, Any], file: Path) -> None:
    """Draws time (above) and memory (below) of a clip against what grows, all axes logarithmic."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=4, shared_xaxes="columns", shared_yaxes="rows", column_titles=list(POINTS))
    for column, (title, points) in enumerate(POINTS.items(), 1):
        for row, quantity in enumerate(("seconds", "bytes"), 1):
            for part, colour in (("train", "#1f5fbf"), ("infer", "#d9822b")):
                x = [point[FIELDS[title]] for point in points]
                y = [measured[name(point)][part][quantity] for point in points]
                curve = {"x": x, "y": y, "name": part, "line_color": colour, "showlegend": row == column == 1}
                figure.add_scatter(**curve, row=row, col=column)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    figure.update_layout(template="plotly_white", yaxis_title="seconds a clip", yaxis5_title="bytes a clip")
    figure.write_html(file)


if __name__ == "__main__":
    main()
