"""Shows a plan as a table."""

from typing import Any

from rgbd_jax.tools.plan.planning import MARGIN

_STAGES_SHOWN, _UNCOUNTED_SHOWN = 12, 3


def table(result: dict[str, Any]) -> str:
    """Returns a plan as a table."""
    compiled = result["compiled"]
    rows = [("parameters", f"{compiled['parameters']:,}"), *_memory(result)]
    rows.append(("FLOPs of a step", _shown(compiled.get("flops"), 1e9, "GFLOP")))
    rows.append(("bytes accessed", _shown(compiled.get("bytes_accessed"), 1e9, "GB")))
    rows += _time(compiled)
    for row in compiled.get("collectives", []):
        asynchronous = f", {row['asynchronous']} asynchronous" if row["asynchronous"] else ""
        text = f"{row['number']} operations{asynchronous}, {row['tensors']} tensors, {_mib(row['bytes'])}"
        rows.append((row["kind"], text))
    width = max(len(name) for name, _ in rows)
    device, clips = result["device"], compiled["clips_per_device"]
    settings = ", ".join(f"{name}={value}" for name, value in result["settings"].items())
    title = f"{device['count']} x {device['kind']}; {settings}\n"
    title += f"The compiler's estimates for one device and its {clips} {'clip' if clips == 1 else 'clips'} of a step:"
    return "\n".join([title, *(f"{name:{width}}  {value}".rstrip() for name, value in rows)])


def _memory(result: dict[str, Any]) -> list[tuple[str, str]]:
    compiled, memory = result["compiled"], result["device"]["memory"]
    rows = [("memory of each device", "")]
    for name in ("argument", "temp", "output", "program", "total"):
        if f"{name}_bytes" in compiled:
            rows.append((f"  {name}", _mib(compiled[f"{name}_bytes"])))
        if name == "temp":
            rows += [
                ("", f"  {_mib(row['bytes'])}: {row['count']} x {row['array']}, {row['stage']}")
                for row in compiled.get("largest_temporaries", [])[:5]
            ]
    fits = "fits" if result["fits"] else "does not fit"
    rows.append(("  available", f"{_mib(memory)}, of which {MARGIN:.0%} is left free: the step {fits}"))
    rows += [("" if number else "    lower it by", text) for number, text in enumerate(result["advice"])]
    largest = compiled["largest_batch"]
    how = "compiled" if compiled["largest_batch_was_compiled"] else "predicted from other sizes"
    rows.append(("largest batch that fits", "unknown" if largest is None else f"{largest} ({how})"))
    return rows


def _time(compiled: dict[str, Any]) -> list[tuple[str, str]]:
    if "stages" not in compiled:
        return []
    stages = list(compiled["stages"].items())[:_STAGES_SHOWN]
    busy = "unknown" if compiled["utilisation"] is None else f"{compiled['utilisation']:.1%} of the device's peak"
    if "kernels" in compiled:
        bound = f"{compiled['bound_ms_per_clip']:.2f} ms a clip at least (roofline bound of every kernel)"
        rows = [("time", bound), ("kernels of a step", f"{compiled['kernels']:,}"), ("utilisation", f"at most {busy}")]
        for name, row in stages:
            text = f"{row['bound_ms_per_clip']:.3f} ms a clip, {row['gigabytes']:.2f} GB, {row['kernels']} kernels"
            rows.append((f"  {name}", text))
        return rows
    cycles = f"{compiled['million_cycles_per_clip']:.1f} million cycles, {compiled['ms_per_clip']:.2f} ms a clip"
    shown = [(f"  {name}", f"{million:.2f} million cycles a clip") for name, million in stages]
    uncounted = [
        (f"  {row['kind']}", f"{row['number']} operations, {_mib(row['bytes'])} of results: no estimate of cycles")
        for row in compiled["uncounted"][:_UNCOUNTED_SHOWN]
    ]
    return [("time", cycles), ("utilisation", busy), *shown, *uncounted]


def _shown(number: float | None, unit: float, name: str) -> str:
    return "unknown" if number is None else f"{number / unit:,.1f} {name}"


def _mib(number: float | None) -> str:
    return _shown(number, 2**20, "MiB")
