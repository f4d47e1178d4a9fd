r"""Measures this package on this machine, part by part, and beside the reference where a checkout of it is given.

    python scripts/benchmark.py train infer --batch 2                        the paper's network
    python scripts/benchmark.py train infer --batch 2 --reference ../MotionRGBD
    python scripts/benchmark.py train --dtype bfloat16 --batch 32 --config configs/nvgesture.py
    python scripts/benchmark.py loader heatmap                               on one core
    python scripts/benchmark.py start loop                                   the whole command, on the demo

| part | what is measured |
| --- | --- |
| train | a training step from uint8 frames, heat maps included; the reference's from normalised frames and heat maps |
| profile | the time of each block of the network within a training step, forward and backward |
| infer | the network from normalised frames and heat maps to logits, on both sides |
| loader, heatmap | a clip's frames, its heat maps, beside the paper's recipe frame by frame (extra `test`: Pillow) |
| start | seconds from the command to the first training step of the demo, cold and warm compilation cache |
| loop | the demo's training loop |

Sides take turns in one run, each in a process of its own, so that the ratio means something on a busy machine. Figures
are medians (smallest-largest). FLOPs are those that the traced step needs; the machine's peaks are measured in the same
run: a large product of matrices, and reading and writing a large array. The table goes to stdout, with `--json` one
JSON object instead. `--reference` needs PyTorch; the two sides' logits are compared before anything is measured.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarking import one_core, start
from benchmarking.in_turn import ratio, spread

PARTS = ("train", "profile", "infer", "loader", "heatmap", "start", "loop")


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--config", default="configs/ntu_cs.py", help="of the network (%(default)s); also --config.FIELD=VALUE"
    )
    parser.add_argument("--frames", type=int, help="frames of a clip (the config's)")
    parser.add_argument("--size", type=int, help="height and width, pixels (the config's)")
    parser.add_argument("--batch", type=int, default=2, help="clips of a batch (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32")
    parser.add_argument("--devices", type=int, default=0, help="simulated devices of the CPU (those that there are)")
    parser.add_argument("--remat", choices=("none", "cheap", "all"), default="none", help="of all blocks (%(default)s)")
    parser.add_argument("--reference", metavar="DIR", help="a checkout of the PyTorch reference, run beside ours")
    parser.add_argument("--data_dir", default="data", help="where the demo's clips are or will be (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is measured (%(default)s)")
    parser.add_argument("--warm_up", type=int, default=1, help="how often each side is run before (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments, fields = parser.parse_known_args()
    arguments.fields = fields
    if others := [field for field in fields if not field.startswith("--config.")]:
        parser.error(f"unexpected arguments: {' '.join(others)}")
    if arguments.reference and not Path(arguments.reference, "lib", "model", "DSN.py").exists():
        parser.error(f"--reference={arguments.reference}: no checkout of the reference, lib/model/DSN.py is not there")
    if {"loader", "heatmap"} & set(arguments.parts) and set(arguments.parts) - {"loader", "heatmap"}:
        parser.error("loader and heatmap keep to one core: measure them in a run of their own")
    try:
        measured = measure(arguments)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(measured) if arguments.json else table(measured))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of every part, and what they were measured on."""
    rows: dict[str, dict[str, Any]] = {}
    parts = arguments.parts
    if "loader" in parts or "heatmap" in parts:
        one_core.keep_to_one_core()
    if "loader" in parts:
        rows |= one_core.loader(arguments.repeats, arguments.warm_up)
    if "heatmap" in parts:
        rows |= one_core.heatmap(arguments.repeats, arguments.warm_up)
    if "start" in parts:
        rows |= start.start(arguments.repeats, arguments.data_dir)
    if "loop" in parts:
        rows |= start.loop(arguments.data_dir)
    peaks: dict[str, float] = {}
    if networks := [part for part in parts if part in ("train", "infer", "profile")]:
        found, peaks = _networks(networks, arguments)
        rows |= found
    return {"machine": {"system": platform.platform(), "cores": os.cpu_count(), **peaks}, "rows": rows}


def _networks(parts: list[str], arguments: argparse.Namespace) -> tuple[dict, dict]:
    from absl import flags
    from ml_collections import config_flags

    from benchmarking.machine import measured_peaks
    from benchmarking.network import network, profile
    from rgbd_jax.data.splits import known_classes
    from rgbd_jax.tools.planning.plan import TracedStep

    holder = config_flags.DEFINE_config_file("config")
    flags.FLAGS(["benchmark", f"--config={arguments.config}", *arguments.fields])
    config = holder.value
    config.model.dtype = arguments.dtype
    config.train.batch_size = config.eval.batch_size = arguments.batch
    config.clip.frames = arguments.frames or config.clip.frames
    config.clip.size = arguments.size or config.clip.size
    config.remat.update(stem=arguments.remat, inception=arguments.remat, transformer=arguments.remat)
    classes = known_classes(config) or 60
    rows: dict[str, dict[str, Any]] = {}
    if whole := [part for part in parts if part != "profile"]:
        rows |= network(
            whole, config, classes, arguments.batch, arguments.devices, arguments.reference, arguments.repeats,
            arguments.warm_up,
        )  # fmt: skip
        step = TracedStep(config, classes, 1)
        flops = {"train": step.program.flops(arguments.batch), "infer": step.forward.flops(arguments.batch)}
        for part, row in rows.items():
            row["flops"] = flops[part]
    if "profile" in parts:
        rows |= profile(config, classes, arguments.batch, arguments.devices, arguments.repeats, arguments.warm_up)
    import jax

    return rows, {"device": jax.devices()[0].device_kind, **measured_peaks(arguments.dtype)}


def table(measured: dict[str, Any]) -> str:
    """Returns the figures as a table, a line for each side of a part."""
    machine = measured["machine"]
    lines = [f"{machine['system']}, {machine['cores']} cores {machine.get('device', '')}"]
    if "flops" in machine:
        rate, bandwidth = machine["flops"] / 1e9, machine["bytes"] / 1e9
        lines.append(f"measured peaks: {rate:.0f} GFLOP/s (matrices), {bandwidth:.1f} GB/s (memory)")
    lines.append(f"{'':52} {'seconds':>24} {'ratio':>6}  more")
    for name, row in measured["rows"].items():
        for side, seconds in row["seconds"].items():
            times = "" if side == "ours" else f"{ratio(seconds, row['seconds']['ours']):.2f}"
            more = _more(row, side, machine)
            lines.append(f"{name + ', ' + side:52} {spread(seconds):>24} {times:>6}  {more}")
    return "\n".join(lines)


def _more(row: dict[str, Any], side: str, machine: dict[str, Any]) -> str:
    said = []
    median = statistics.median(row["seconds"][side])
    if "clips" in row:
        said.append(f"{row['clips'] / median:.3g} clips/s")
    if "flops" in row:
        rate = row["flops"] / median
        said.append(f"{rate / 1e9:.0f} GFLOP/s, {rate / machine['flops']:.0%} of the peak")
    if peak := row.get("peak_bytes", {}).get(side):
        said.append(f"{peak / 1e9:.2f} GB at most")
    if side == "ours":
        if row.get("bytes_accessed"):
            said.append(f"{row['bytes_accessed'] / median / machine['bytes']:.0%} of the bandwidth")
        if "compile_seconds" in row:
            said.append(f"compiled in {row['compile_seconds']:.0f} s")
        if "input_wait_fraction" in row:
            said.append(f"{row['input_wait_fraction']:.2%} of it waiting for clips")
    return ", ".join(said)


if __name__ == "__main__":
    main()
