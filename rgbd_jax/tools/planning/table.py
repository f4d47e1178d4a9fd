"""The plan of a training as text."""

from collections.abc import Iterator, Mapping

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
MEMORY = {
    "parameters": "parameters",
    "optimizer_state": "optimizer state",
    "batch_statistics": "batch statistics",
    "batch": "batch (uint8 frames)",
    "kept": "kept from the forward to the backward pass",
    "gradient": "gradient",
    "transient": "what comes and goes besides",
    "calculated": "together",
    "allowance": "allowance for what XLA takes besides",
    "total": "in all",
}


def table(plan: Mapping) -> str:
    """Returns the plan (see `plan.plan`) as a table of several lines."""
    rows = [row for part in (_parameters, _flops, _memory, _largest, _sent, _seconds) for row in part(plan)]
    width = max(len(name) for name, _ in rows)
    return "\n".join([_title(plan), *(f"{name:{width}}  {value}".rstrip() for name, value in rows)])


def _title(plan: Mapping) -> str:
    device, training = plan["device"], plan["training"]
    split = f", parameters over {training['parameter_shards']}" if training["parameter_shards"] > 1 else ""
    remat = ", ".join(f"{name} {what}" for name, what in sorted(training["remat"].items()))
    return (
        f"{training['stream']} on {device['count']} x {device['kind']}, {training['batch_size']} clips in "
        f"{training['dtype']}{split}; computed again: {remat}\n"
        "Everything is calculated from the traced step; nothing was compiled or run."
    )


def _parameters(plan: Mapping) -> Iterator[tuple[str, str]]:
    parameters = plan["parameters"]
    yield "parameters", f"{parameters['count']:,}, {in_bytes(parameters['bytes'])}"
    for name, part in parameters["parts"].items():
        yield f"  {name}", f"{part['count']:,}"


def _flops(plan: Mapping) -> Iterator[tuple[str, str]]:
    flops = plan["flops"]
    forward, training = flops["forward_per_clip"], flops["training_per_clip"]
    yield "arithmetic", ""
    yield "  a clip, forward", in_flops(forward)
    yield "  a clip, training", f"{in_flops(training)}, {training / forward:.2f} times as many"
    yield "  a step, each device", in_flops(flops["step_per_device"])


def _memory(plan: Mapping) -> Iterator[tuple[str, str]]:
    memory, device, training = plan["memory"], plan["device"], plan["training"]
    parts = f" in {training['microbatches']} parts" if training["microbatches"] > 1 else ""
    yield "memory of each device", f"{training['clips_per_device']} clips{parts}"
    for name, words in MEMORY.items():
        yield f"  {words}", in_bytes(memory[name])
    fits = "fits" if memory["fits"] else "does not fit"
    yield "  usable", f"{in_bytes(device['usable'])} of {in_bytes(device['memory'])}: it {fits}"
    for advice in plan["advice"]:
        yield "    what would help", advice


def _largest(plan: Mapping) -> Iterator[tuple[str, str]]:
    largest = plan["largest_batch"]
    if largest["clips"]:
        each = f"{largest['clips_per_device']} on each device, {in_bytes(largest['total'])}"
        yield "largest batch that fits", f"{largest['clips']} clips, {each}"
    else:
        least = plan["training"]["microbatches"]
        yield "largest batch that fits", f"0: not even {least} on each device; see what would help"


def _sent(plan: Mapping) -> Iterator[tuple[str, str]]:
    yield "each device sends in a step", "" if plan["sent"] else "nothing"
    for row in plan["sent"]:
        yield f"  {row['kind']}, {row['purpose']}", f"{row['number']} of {in_bytes(row['bytes'])} together"


def _seconds(plan: Mapping) -> Iterator[tuple[str, str]]:
    yield "a step takes at least", f"(figures of the device: {plan['device']['source']})"
    names = {
        "arithmetic": "  at its peak of arithmetic",
        "memory": "  at its memory's bandwidth, as stored above",
        "links": "  at its links' bandwidth, without waiting",
    }
    for name, words in names.items():
        seconds = plan["seconds_at_least"][name]
        yield words, "not known" if seconds is None else f"{1e3 * seconds:.2f} ms"


def in_bytes(number: float) -> str:
    """Returns a number of bytes in the unit that suits it."""
    for unit in UNITS:
        if abs(number) < 1024 or unit == UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.2f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")


def in_flops(number: float) -> str:
    """Returns a number of floating-point operations in GFLOP or TFLOP."""
    return f"{number / 1e12:.2f} TFLOP" if number >= 1e12 else f"{number / 1e9:.4g} GFLOP"
