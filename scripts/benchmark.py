r"""Measures this package on this machine, part by part, and beside the reference where a checkout of it is given.

    python scripts/benchmark.py train infer --batch 2                        the paper's network
    python scripts/benchmark.py train infer --batch 2 --reference ../MotionRGBD
    python scripts/benchmark.py train --batch 32 --config configs/nvgesture.py --config.model.dtype=bfloat16
    python scripts/benchmark.py loader heatmap --config configs/demo.py      a prepared data set's clips, on one core
    python scripts/benchmark.py loader --config configs/demo.py:depth --repeats 30 --reference ../MotionRGBD
    python scripts/benchmark.py device --reference ../MotionRGBD --json >measured.json    an accelerator, in ten minutes
    python scripts/benchmark.py compiled --out docs/compiled.json            hours; resumes
    python scripts/benchmark.py compiled --cases "rgb train bfloat16 v5e" --compare docs/compiled.json

| part | what is measured |
| --- | --- |
| train | a training step from uint8 frames, heat maps included; the reference's from normalised frames and heat maps |
| profile | the time of each block of the network within a training step, forward and backward |
| eval | an evaluation step from uint8 frames |
| infer | the network from normalised frames and heat maps to logits, on both sides |
| loader, heatmap | a training clip's frames, and its heat maps; the reference's loader makes both from files |
| device | for up to `--minutes`: the steps for growing batches, beside their compiler's estimates, and the loader |
| compiled | the compilers' estimates for a TPU v5e and an H100 (`./scripts/setup.sh plan`); nothing is run |

Sides take turns in one run, each in a process of its own, so that the ratio means something on a busy machine. Times
are medians (smallest-largest). The table goes to stdout, with `--json` one JSON object instead. `--reference` needs
PyTorch; the two sides' logits are compared before anything is measured. `compiled --compare` prints what changed since
a file was written; the exit status is 1 if an estimate grew by more than 5 %.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import ConfigDict

from benchmarking.sides import Side, seconds_in_turn, spread

# The reference's process imports this file too: JAX, which would count as its memory, is imported in the functions.

STEPS, ONE_CORE = ("train", "eval", "infer"), ("loader", "heatmap")
DEVICE, COMPILED = "device", "compiled"
PARTS = (*STEPS, "profile", *ONE_CORE, DEVICE, COMPILED)


Rows = dict[str, dict[str, Any]]


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
    parser.add_argument("--minutes", type=float, default=10, help="device: that it may take (%(default)s)")
    group = parser.add_argument_group("compiled")
    group.add_argument("--cases", default="all", help="all, small (blocks; a minute), or words of the cases' names")
    group.add_argument("--out", type=Path, help="JSON file of the estimates, written after each case")
    group.add_argument("--compare", type=Path, metavar="FILE", help="such a file, from before")
    args, overrides = parser.parse_known_args()
    if others := [field for field in overrides if not field.startswith("--config.")]:
        parser.error(f"unexpected arguments: {' '.join(others)}")
    if args.reference and not Path(args.reference, "lib", "model", "DSN.py").exists():
        parser.error(f"--reference={args.reference}: no checkout of the reference, lib/model/DSN.py is not there")
    if {*ONE_CORE} & {*args.parts} and {*args.parts} - {*ONE_CORE}:
        parser.error("loader and heatmap keep to one core: measure them in a run of their own")
    for part in (DEVICE, COMPILED):
        if part in args.parts and {*args.parts} != {part}:
            parser.error(f"{part} is a run of its own: give it alone")
    if COMPILED in args.parts:
        compare_compiled(args, overrides)
        return
    from rgbd_jax.config import load_config

    try:
        config = load_config(args.config, overrides)
        rows, device = measure(args, config, overrides)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "device": device}
    print(json.dumps({"machine": machine, "rows": rows}) if args.json else table(machine, rows))


def compare_compiled(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the compilers' estimates, or with `--compare` what changed; exits with 1 if something got worse."""
    from benchmarking import compiled

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)  # absl has one already
    logging.getLogger("rgbd_jax").setLevel(logging.INFO)
    try:
        before = compiled.read(args.compare) if args.compare else {}
        rows = compiled.measure(compiled.cases(args.cases, args.config, overrides), args.out)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")
    if not args.compare:
        print(json.dumps(rows) if args.json else compiled.table(rows))
        return
    print("\n".join(compiled.changes(before, rows)) or "nothing changed")
    if worse := compiled.regressions(before, rows):
        sys.exit("\n".join([f"error: worse by more than {compiled.TOLERANCE:.0%} than {args.compare}:", *worse]))


def measure(args: argparse.Namespace, config: ConfigDict, overrides: list[str]) -> tuple[Rows, str]:
    """Returns the measurements of every part by name, and the kind of device."""
    if {*args.parts} <= {*ONE_CORE}:
        return on_one_core(args.parts, config, args), "one core"
    if args.devices:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    kinds: list[str] = []

    def measure_batch(sides: dict[str, Side], clips: int) -> Rows:
        kinds.append(sides["ours"]("device"))
        return measure_network([*STEPS, "profile"] if DEVICE in args.parts else args.parts, sides, clips, args)

    make_sides = functools.partial(started_sides, config, args.reference)
    if DEVICE not in args.parts:
        with contextlib.ExitStack() as stack:
            sides = make_sides(stack, args.batch)
            return measure_batch(sides, args.batch), kinds[0]
    from benchmarking.measured import measure_loader, measure_steps

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("rgbd_jax").setLevel(logging.INFO)
    options = [
        f"--config={args.config}",
        f"--repeats={args.repeats}",
        *overrides,
        *([f"--reference={args.reference}"] if args.reference else []),
    ]
    started = time.monotonic()
    rows = measure_loader(options)
    return rows | measure_steps(make_sides, measure_batch, started + 60 * args.minutes), kinds[0]


def started_sides(
    config: ConfigDict, reference: str | None, stack: contextlib.ExitStack, clips: int
) -> dict[str, Side]:
    """Returns our side and the reference's, for batches of so many clips; the stack ends their processes."""
    from benchmarking.ours import Ours
    from rgbd_jax.data.source import known_classes

    classes = known_classes(config) or 60
    config.train.batch_size = config.eval.batch_size = clips
    sides = {"ours": Side(Ours, config, classes, clips)}
    stack.callback(sides["ours"].close)
    if reference:
        sides["reference"] = reference_side(sides["ours"], reference, config, classes)
        stack.callback(sides["reference"].close)
    return sides


def measure_network(parts: list[str], sides: dict[str, Side], clips: int, args: argparse.Namespace) -> Rows:
    """Measures steps and inference on all sides, and the blocks of the training step on ours."""
    rows: Rows = {}
    for part in (part for part in STEPS if part in parts):
        seconds = sides["ours"]("prepare", part)
        runs = {name: functools.partial(side, "run", part) for name, side in sides.items()}
        if part == "eval":  # the reference has no such step
            runs = {"ours": runs["ours"]}
        measured = seconds_in_turn(runs, args.repeats, args.warm_up)
        peaks = {name: sides[name]("peak", part) for name in runs}
        row = {"seconds": measured, "clips": clips, "peak_bytes": peaks, "compile_seconds": seconds}
        rows[part] = row | {"estimates": sides["ours"]("estimates", part)}
    if "profile" in parts:
        if "train" not in parts:
            sides["ours"]("prepare", "train")
            sides["ours"]("run", "train")
        profiles = [sides["ours"]("profile", "train") for _ in range(args.repeats)]
        rows |= {block: {"seconds": {"ours": [profile[block] for profile in profiles]}} for block in profiles[0]}
    return rows


def on_one_core(parts: list[str], config: ConfigDict, args: argparse.Namespace) -> Rows:
    """Measures "loader" (stored to transformed frames) and "heatmap" for training clips of the config's data set."""
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

    runs: dict[str, dict[str, Callable[[], float | None]]]
    runs = {part: {"ours": functools.partial(run, part)} for part in parts}
    with contextlib.ExitStack() as stack:
        if args.reference and "loader" in parts:
            from benchmarking.layout import write_clips
            from benchmarking.reference_loader import ReferenceLoader

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            lines = write_clips(source, config.modality, folder, limit=16)  # their files stay in the page cache
            (folder / "clips.txt").write_text("".join(lines))
            side = Side(ReferenceLoader, str(Path(args.reference).resolve()), config, folder)
            stack.callback(side.close)
            runs["loader"]["reference"] = functools.partial(side, "run")
        return {p: {"seconds": seconds_in_turn(runs[p], args.repeats, args.warm_up), "clips": 1} for p in parts}


def reference_side(of_ours: Side, checkout: str, config: ConfigDict, classes: int) -> Side:
    """Returns the reference's side with the weights of ours, after both have computed the same logits.

    Raises:
        RuntimeError: they have not.
    """
    from benchmarking.reference import REFERENCES

    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        of_ours("save_inputs", inputs)
        theirs = Side(REFERENCES[config.network], str(Path(checkout).resolve()), config, classes, inputs)
    of_ours("prepare", "infer")
    for side in (of_ours, theirs):
        side("run", "infer")
    logits = theirs("logits")
    difference = abs(of_ours("logits") - logits).max() / abs(logits).max()
    if not difference < 0.05:  # bfloat16 and float16 are measured too; float32 agrees to 1e-5
        raise RuntimeError(f"the two sides compute different logits: {difference:.1e} of their scale")
    return theirs


def table(machine: dict[str, Any], rows: Rows) -> str:
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
            if side == "ours" and (estimates := row.get("estimates")):
                time_of = estimates.get("bound_ms_per_clip") or estimates.get("ms_per_clip")
                bound = f"{time_of * row['clips'] / 1e3:.3f} s, " if time_of else ""
                more.append(f"estimated {bound}{estimates['total_bytes'] / 1e9:.2f} GB")
            lines.append(f"{f'{name}, {side}':40} {spread(seconds):>24} {ratio:>6}  {', '.join(more)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
