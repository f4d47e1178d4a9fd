r"""Measures this package on this machine, part by part, and beside the reference where a checkout of it is given.

    python scripts/benchmark.py train infer --batch 2                        the paper's network
    python scripts/benchmark.py train infer --batch 2 --reference ../MotionRGBD
    python scripts/benchmark.py train --batch 32 --config configs/nvgesture.py --config.model.dtype=bfloat16
    python scripts/benchmark.py loader heatmap --config configs/demo.py      a prepared data set's clips, on one core

| part | what is measured |
| --- | --- |
| train | a training step from uint8 frames, heat maps included; the reference's from normalised frames and heat maps |
| profile | the time of each block of the network within a training step, forward and backward |
| infer | the network from normalised frames and heat maps to logits, on both sides |
| loader, heatmap | a training clip's frames, and its heat maps |

Sides take turns in one run, each in a process of its own, so that the ratio means something on a busy machine. Times
are medians (smallest-largest). The table goes to stdout, with `--json` one JSON object instead. `--reference` needs
PyTorch; the two sides' logits are compared before anything is measured.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import ConfigDict

from benchmarking.sides import Side, seconds_in_turn, spread

# The reference's process imports this file too: JAX, which would count as its memory, is imported in the functions.

NETWORK, ONE_CORE = ("train", "infer", "profile"), ("loader", "heatmap")
PARTS = (*NETWORK, *ONE_CORE)


def main() -> None:
    """Measures the parts on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--config", default="configs/ntu_cs.py", help="also --config.FIELD=VALUE (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="clips of a batch (%(default)s)")
    parser.add_argument("--devices", type=int, default=0, help="simulated devices of the CPU (those that there are)")
    parser.add_argument("--reference", metavar="DIR", help="a checkout of the PyTorch reference, run beside ours")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is measured (%(default)s)")
    parser.add_argument("--warm_up", type=int, default=1, help="how often each side is run before (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args, overrides = parser.parse_known_args()
    if others := [field for field in overrides if not field.startswith("--config.")]:
        parser.error(f"unexpected arguments: {' '.join(others)}")
    if args.reference and not Path(args.reference, "lib", "model", "DSN.py").exists():
        parser.error(f"--reference={args.reference}: no checkout of the reference, lib/model/DSN.py is not there")
    if {*ONE_CORE} & {*args.parts} and {*args.parts} - {*ONE_CORE}:
        parser.error("loader and heatmap keep to one core: measure them in a run of their own")
    from rgbd_jax.config import load_config

    try:
        config = load_config(args.config, overrides)
        config.train.batch_size = config.eval.batch_size = args.batch
        rows, device = measure(args, config)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "device": device}
    print(json.dumps({"machine": machine, "rows": rows}) if args.json else table(machine, rows))


def measure(args: argparse.Namespace, config: ConfigDict) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns the measurements of every part by name, and the kind of device."""
    from benchmarking.ours import Ours
    from rgbd_jax.data.source import known_classes

    parts = args.parts
    if {*parts} <= {*ONE_CORE}:
        return on_one_core(parts, config, args.repeats, args.warm_up), "one core"
    if args.devices:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    classes = known_classes(config) or 60
    sides = {"ours": Side(Ours, config, classes, args.batch)}
    if args.reference:
        sides["reference"] = reference_side(sides["ours"], args.reference, config, classes)
    try:
        return measure_network(parts, sides, args), sides["ours"]("device")
    finally:
        for side in sides.values():
            side.close()


def measure_network(parts: list[str], sides: dict[str, Side], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures training step and inference on all sides, and the blocks of the training step on ours."""
    rows: dict[str, dict[str, Any]] = {}
    for part in ("train", "infer"):
        if part in parts:
            seconds = sides["ours"]("prepare", part)
            runs = {name: functools.partial(side, "run", part) for name, side in sides.items()}
            measured = seconds_in_turn(runs, args.repeats, args.warm_up)
            peaks = {name: side("peak", part) for name, side in sides.items()}
            rows[part] = {"seconds": measured, "clips": args.batch, "peak_bytes": peaks, "compile_seconds": seconds}
    if "profile" in parts:
        if "train" not in parts:
            sides["ours"]("prepare", "train")
            sides["ours"]("run", "train")
        profiles = [sides["ours"]("profile", "train") for _ in range(args.repeats)]
        rows |= {block: {"seconds": {"ours": [profile[block] for profile in profiles]}} for block in profiles[0]}
    return rows


def on_one_core(parts: list[str], config: ConfigDict, repeats: int, warm_up: int) -> dict[str, dict[str, Any]]:
    """Measures "loader" (encoded to transformed frames) and "heatmap" for training clips of the config's data set."""
    import jax

    from rgbd_jax.data.loader import train_batches
    from rgbd_jax.data.source import open_split
    from rgbd_jax.models.heat_map import heat_maps

    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    config.data.workers = 0  # every clip is loaded when it is taken, none ahead
    source = open_split(config.data.dataset, config.data.data_dir, config.data.train_split)
    batches = train_batches(source, config, batch_size=1)
    frames = next(batches)["frames"][config.modality]  # 1 t h w c
    compiled = jax.jit(heat_maps, static_argnums=1)

    def run(part: str) -> None:
        next(batches) if part == "loader" else compiled(frames, config.model.frp_window).block_until_ready()

    runs = {part: {"ours": functools.partial(run, part)} for part in parts}
    return {part: {"seconds": seconds_in_turn(runs[part], repeats, warm_up), "clips": 1} for part in parts}


def reference_side(of_ours: Side, checkout: str, config: ConfigDict, classes: int) -> Side:
    """Returns the reference's side with the weights of ours, after both have computed the same logits.

    Raises:
        RuntimeError: they have not.
    """
    from benchmarking.reference import Reference

    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        of_ours("save_inputs", inputs)
        theirs = Side(Reference, str(Path(checkout).resolve()), config, classes, inputs)
    of_ours("prepare", "infer")
    for side in (of_ours, theirs):
        side("run", "infer")
    logits = theirs("logits")
    difference = abs(of_ours("logits") - logits).max() / abs(logits).max()
    if not difference < 0.05:  # bfloat16 and float16 are measured too; float32 agrees to 1e-5
        raise RuntimeError(f"the two sides compute different logits: {difference:.1e} of their scale")
    return theirs


def table(machine: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Returns the measurements as a table, a line for each side of a part."""
    lines = [f"{machine['system']}, {machine['cores']} cores, {machine['device']}"]
    lines.append(f"{'':40} {'seconds':>24} {'ratio':>6}")
    for name, row in rows.items():
        for side, seconds in row["seconds"].items():
            median = statistics.median(seconds)
            ratio = "" if side == "ours" else f"{median / statistics.median(row['seconds']['ours']):.2f}"
            more = [f"{row['clips'] / median:.3g} clips/s"] if "clips" in row else []
            if peak := row.get("peak_bytes", {}).get(side):
                more.append(f"{peak / 1e9:.2f} GB at most")
            if side == "ours" and "compile_seconds" in row:
                more.append(f"compiled in {row['compile_seconds']:.0f} s")
            lines.append(f"{f'{name}, {side}':40} {spread(seconds):>24} {ratio:>6}  {', '.join(more)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
