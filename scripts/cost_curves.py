"""How time and memory of a clip grow with its frames and size, with the batch and with the devices.

    python scripts/cost_curves.py --out docs/cost.json --picture docs/cost.png

Varies one of the four at a time around 32 frames of 112x112 in batches of 2 (of 16 for the devices) and runs
`scripts/benchmark.py train infer` for each; points that are in the file already are not measured again. The
branches see a quarter, a half and three quarters of the frames, as in the paper's network. The table goes to stdout;
the picture needs Chromium and the extra `test`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import screenshots

SCRIPTS = Path(__file__).resolve().parent
BASE = {"frames": 32, "size": 112, "batch": 2, "devices": 1}
GROWING = {
    "frames": [{**BASE, "frames": n} for n in (16, 32, 64, 128)],
    "size": [{**BASE, "size": n} for n in (112, 160, 224, 320)],
    "batch": [{**BASE, "batch": n} for n in (1, 2, 4, 8, 16)],
    "devices": [{**BASE, "batch": 16, "devices": n} for n in (1, 2, 4, 8)],
}
TITLES = {
    "frames": "frames of a clip", "size": "height and width, pixels", "batch": "clips of a batch",
    "devices": "simulated devices, batch of 16",
}  # fmt: skip


def main() -> None:
    """Measures what is missing, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the figures are kept (JSON)")
    parser.add_argument("--picture", type=Path, help="where the curves are drawn (PNG)")
    parser.add_argument("--config", default="configs/nvgesture.py", help="of the network (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="how often each point is measured (%(default)s)")
    parser.add_argument("--most", type=int, default=1000, help="points that are measured in this run at most")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    measured = 0
    for point in (point for points in GROWING.values() for point in points):
        if name(point) not in figures and measured < arguments.most:
            figures[name(point)] = measure(point, arguments.config, arguments.repeats)
            arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
            measured += 1
            print(f"measured {name(point)}", file=sys.stderr)
    missing = [name(point) for points in GROWING.values() for point in points if name(point) not in figures]
    if missing:
        sys.exit(f"{len(missing)} points are left to measure: run the same command again")
    print(table(figures))
    if arguments.picture:
        try:
            draw(figures, arguments.picture)
        except OSError as error:
            sys.exit(f"error: {arguments.picture} cannot be drawn: {error}, or leave --picture out")


def name(point: dict[str, int]) -> str:
    """Returns the name of a point in the file."""
    return ",".join(f"{field}={value}" for field, value in point.items())


def measure(point: dict[str, int], config: str, repeats: int) -> dict[str, Any]:
    """Returns seconds, bytes and FLOPs of a clip of a training step and of an inference."""
    frames = point["frames"]
    finished = subprocess.run(
        [
            sys.executable, SCRIPTS / "benchmark.py", "train", "infer", "--json", f"--config={config}",
            f"--repeats={repeats}", *(f"--{field}={value}" for field, value in point.items()),
            f"--config.model.branch_frames=({frames // 4}, {frames // 2}, {3 * frames // 4})",
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if finished.returncode:
        sys.exit(f"{name(point)}: {finished.stderr.strip()}")
    rows = json.loads(finished.stdout)["rows"]
    return {
        part: {
            "seconds": statistics.median(row["seconds"]["ours"]) / point["batch"],
            "bytes": row["peak_bytes"]["ours"] / point["batch"],
            "flops": row["flops"] / point["batch"],
        }
        for part, row in rows.items()
    }


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Returns the figures as a table in Markdown."""
    lines = [
        "| | training step, s a clip | GB a clip | inference, s a clip | GB a clip |",
        "| --- | --- | --- | --- | --- |",
    ]
    for growing, points in GROWING.items():
        lines.append(f"| **{TITLES[growing]}** | | | | |")
        for point in points:
            cells = [
                cell
                for part in ("train", "infer")
                for cell in (
                    f"{figures[name(point)][part]['seconds']:.3g}",
                    f"{figures[name(point)][part]['bytes'] / 1e9:.3g}",
                )
            ]
            lines.append(f"| {point[growing]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Draws time (above) and memory (below) of a clip against what grows, both axes logarithmic."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    picture = make_subplots(
        rows=2, cols=4, shared_xaxes="columns", shared_yaxes="rows", vertical_spacing=0.06, horizontal_spacing=0.03
    )
    colours = {"train": ("#1f5fbf", "training step"), "infer": ("#d9822b", "inference")}
    for column, (growing, points) in enumerate(GROWING.items(), 1):
        for row, (quantity, unit) in enumerate((("seconds", 1), ("bytes", 1e9)), 1):
            for part, (colour, title) in colours.items():
                line = go.Scatter(
                    x=[point[growing] for point in points],
                    y=[figures[name(point)][part][quantity] / unit for point in points],
                    name=title, mode="lines+markers", line={"color": colour}, legendgroup=part,
                    showlegend=row == column == 1,
                )  # fmt: skip
                picture.add_trace(line, row=row, col=column)
            values = [point[growing] for point in points]
            picture.update_xaxes(type="log", tickvals=values, ticktext=[str(v) for v in values], row=row, col=column)
        picture.update_xaxes(title=TITLES[growing], row=2, col=column)
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    picture.update_yaxes(type="log", tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    picture.update_yaxes(title="seconds a clip", row=1, col=1)
    picture.update_yaxes(title="gigabytes a clip", row=2, col=1)
    picture.update_layout(
        template="plotly_white",
        width=1100,
        height=560,
        margin={"t": 30, "r": 20},
        legend={"orientation": "h", "y": 1.1},
    )
    with screenshots.chromium() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 560})
        page.set_content(picture.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.wait_for_selector(".plot-container svg")
        page.screenshot(path=str(file))


if __name__ == "__main__":
    main()
