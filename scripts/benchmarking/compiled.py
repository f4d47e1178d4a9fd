"""The compiled benchmark: what compilers for accelerators that need not be present estimate of a fixed set of programs.

The estimates do not vary from run to run: what changes them is a change of the source, of a version or of a setting.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarking import blocks
from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.config import load_config
from rgbd_jax.tools.plan import cache
from rgbd_jax.tools.plan.compilation import Job
from rgbd_jax.tools.plan.isolated import run_isolated
from rgbd_jax.tools.plan.planning import estimated
from rgbd_jax.tools.plan.targets import Target, check_installed

NUM_CLASSES = 60
TPU, GPU = Target("v5e", "2x2"), Target("H100")
ONE_TPU = Target("v5e", "1x1")
CLIPS = {TPU: (1, 4), GPU: (1, 6)}  # of a device
# In all of them less is better. The last are the megabytes that operations without an estimate of cycles write.
METRICS = (
    "million_cycles_per_clip",
    "bound_ms_per_clip",
    "gigabytes",
    "kernels",
    "temp_bytes",
    "argument_bytes",
    "uncounted_megabytes",
)
_LEFT_OUT = ("device", "device_memory", "platform", "largest_temporaries")
TOLERANCE = 0.05  # a regression is more than this

Cases = dict[str, tuple[str, Callable[[], dict[str, Any]]]]  # name -> what its estimates depend on, what returns them


def cases(which: str, config: str, overrides: list[str]) -> Cases:
    """Returns the programs of the benchmark.

    Args:
        which: "all", "small" (blocks of the network, which compile in a minute), or words: the programs of "all" whose
            names have each of them.
        config: file of a config, whose steps are compiled.
        overrides: of its fields.

    Raises:
        ValueError: no program has these words in its name.
    """
    if which == "small":
        return dict(_blocks())
    found = dict(_steps(config, overrides))
    if which != "all":
        found = {name: case for name, case in found.items() if {*which.split()} <= {*name.replace(",", "").split()}}
    if not found:
        known = ", ".join(dict(_steps(config, overrides)))
        raise ValueError(f"--cases={which!r}: expected all, small, or words of some of these: {known}")
    return found


def _steps(file: str, overrides: list[str]) -> Iterator[tuple[str, tuple[str, Callable[[], dict[str, Any]]]]]:
    file = file.partition(":")[0]
    for modality, step, dtype in itertools.product(("rgb", "fusion"), ("train", "eval"), ("bfloat16", "float32")):
        config: ConfigDict = load_config(f"{file}:{modality}", [*overrides, f"--config.model.dtype={dtype}"])
        for target, clips in ((target, number) for target, numbers in CLIPS.items() for number in numbers):
            devices = 4 if target is TPU else 1
            job = Job(config, NUM_CLASSES, target, clips * devices, step)
            name = f"{Path(file).stem} {modality}, {step}, {dtype}, {target.name}, {clips} clip{'s'[: clips - 1]}"
            yield name, (cache.key_of(job), functools.partial(estimated, job))


def _blocks() -> Iterator[tuple[str, tuple[str, Callable[[], dict[str, Any]]]]]:
    for target, name in itertools.product((ONE_TPU, GPU), blocks.BLOCKS):
        what = f"compiling {name} for {target.name}"
        parts = (cache.source_hash(), str(cache.versions(target)), Path(blocks.__file__).read_text())
        key = hashlib.sha256("".join(parts).encode()).hexdigest()
        estimate = functools.partial(run_isolated, what, True, blocks.estimate_block, name, target)
        yield f"{name}, {target.name}", (key, estimate)


def measure(which: Cases, out: Path | None) -> dict[str, dict[str, Any]]:
    """Returns the estimates of programs by name; with a file writes them, each when it is there.

    Those that the file has of the same source, config and versions are not compiled again.

    Raises:
        ValueError: a compiler is not installed.
    """
    for target in (TPU, GPU):
        check_installed(target)
    written = read(out) if out is not None and out.exists() else {}
    results = {}
    for name, (key, estimate) in which.items():
        if written.get(name, {}).get("key") != key:
            row = {field: _rounded(value) for field, value in estimate().items() if field not in _LEFT_OUT}
            written[name] = {"key": key, **row}
            if out is not None:
                with atomic_write(out) as unfinished:
                    unfinished.write_text(json.dumps(written, indent=1) + "\n")
        results[name] = written[name]
    return results


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Returns the estimates that a file holds.

    Raises:
        ValueError: it holds something else.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not a file of this benchmark: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(row, dict) and "key" in row for row in found.values()):
        raise ValueError(f"{file}: not a file of this benchmark: expected name -> estimates with a key")
    return found


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the estimates as a table, a line for each program."""
    width = max(map(len, rows))
    lines = ["The compilers' estimates for one device."]
    for name, row in rows.items():
        found = [f"{value:,.6g} {metric}" for metric, value in _metrics(row).items()]
        lines.append(f"{name:{width}}  {', '.join(found) or 'does not fit'}")
    return "\n".join(lines)


def changes(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns what changed between two sets of estimates, a line for each metric and stage that differs by 0.1 %."""
    lines = []
    for name, row in after.items():
        if name not in before:
            lines.append(f"{name}: new")
            continue
        old, new = _flat(before[name]), _flat(row)
        for metric in dict.fromkeys((*old, *new)):
            a, b = old.get(metric, 0), new.get(metric, 0)
            if abs(b - a) > 0.001 * max(abs(a), abs(b)):
                lines.append(f"{name}: {metric} {a:,.6g} -> {b:,.6g}" + (f" ({b / a - 1:+.1%})" if a else ""))
    return lines


def regressions(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the metrics that grew by more than `TOLERANCE`, a line for each."""
    lines = []
    for name, row in after.items():
        found = _metrics(row)
        for metric, old in _metrics(before.get(name, {})).items():
            new = found.get(metric)
            if new is None or new > old * (1 + TOLERANCE):
                lines.append(f"{name}: {metric} {old:,.6g} -> " + ("does not fit" if new is None else f"{new:,.6g}"))
    return lines


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    values = {metric: row[metric] for metric in METRICS if row.get(metric) is not None}
    if "uncounted" in row:
        values["uncounted_megabytes"] = round(sum(each["bytes"] for each in row["uncounted"]) / 1e6)
    return values


def _flat(row: Mapping[str, Any]) -> dict[str, float]:
    values = _metrics(row)
    for stage, value in row.get("stages", {}).items():
        values[stage] = value["bound_ms_per_clip"] if isinstance(value, dict) else value
    for collective in row.get("collectives", []):
        values |= {f"{collective['kind']}, {what}": collective[what] for what in ("number", "bytes")}
    return values


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, 5) if isinstance(value, float) else value
