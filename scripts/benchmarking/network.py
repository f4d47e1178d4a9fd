"""Training step and inference of the network, beside the reference's own code where a checkout of it is given."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarking.in_turn import seconds_in_turn
from benchmarking.worker import Worker

SIMULATED_DEVICES = "--xla_force_host_platform_device_count"


def network(
    parts: list[str], config: ConfigDict, classes: int, clips: int, devices: int, reference: str | None, repeats: int,
    warm_up: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Measures the parts "train" and "infer" and returns name -> seconds of each side, compile time and memory.

    Args:
        parts: what is measured.
        config: the experiment's config.
        classes: number of classes.
        clips: clips of a batch, over all devices.
        devices: simulated devices of a CPU; 0 takes those that there are.
        reference: a checkout of the reference, or None.
        repeats: how often each side is measured.
        warm_up: how often each side is run before.

    Raises:
        RuntimeError: one side could not be run, or the two do not compute the same.
    """
    workers = {"ours": _ours(config, classes, clips, devices)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = {part: workers["ours"]("prepare", part) for part in parts}
            if reference:
                inputs = str(Path(folder) / "inputs.npz")
                workers["ours"]("save_inputs", inputs)
                mixed = config.model.dtype == "bfloat16"
                workers["reference"] = Worker(
                    "reference",
                    {
                        "checkout": str(Path(reference).resolve()), "arguments": reference_arguments(config),
                        "classes": classes, "inputs": inputs, "mixed": mixed,
                    },
                    {},
                )  # fmt: skip
                if "infer" not in parts:
                    workers["ours"]("prepare", "infer")
                _check_same(workers)
            rows = {}
            for part in parts:
                sides = {name: functools.partial(worker, "run", part) for name, worker in workers.items()}
                seconds = seconds_in_turn(sides, repeats, warm_up)
                peaks = {name: worker("peak", part) for name, worker in workers.items()}
                rows[part] = {"seconds": seconds, "clips": clips, "peak_bytes": peaks, **prepared[part]}
            return rows
    finally:
        for worker in workers.values():
            worker.close()


def _ours(config: ConfigDict, classes: int, clips: int, devices: int) -> Worker:
    flags = {"XLA_FLAGS": f"{SIMULATED_DEVICES}={devices}"} if devices else {}
    return Worker("ours", {"config": config.to_dict(), "classes": classes, "clips": clips}, flags)


def profile(
    config: ConfigDict, classes: int, clips: int, devices: int, repeats: int, warm_up: int
) -> dict[str, dict[str, Any]]:
    """Returns the seconds of each block of our network in a training step (see `network` for the arguments)."""
    ours = _ours(config, classes, clips, devices)
    try:
        ours("prepare", "train")
        for _ in range(warm_up):
            ours("run", "train")
        runs = [ours("profile", "train") for _ in range(repeats)]
    finally:
        ours.close()
    return {block: {"seconds": {"ours": [run[block] for run in runs]}} for block in runs[0]}


def _check_same(workers: dict[str, Worker]) -> None:
    """Compares the logits of both sides, whose weights are the same; training changes them, so this comes first."""
    for worker in workers.values():
        worker("run", "infer")
    ours, theirs = (np.array(workers[name]("logits")) for name in ("ours", "reference"))
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not difference < 0.05:  # bfloat16 and float16 are measured too; float32 agrees to 1e-5
        raise RuntimeError(f"the two sides compute different logits: {difference:.1e} of their scale")


def reference_arguments(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings of the reference's network, by its own names, that a config stands for."""
    model, loss = config.model, config.loss
    low, medium, high = model.branch_frames
    return {
        "Network": "I3DWTrans", "dataset": "THU" if model.recoupling_hidden == 128 else "NTU", "w": model.frp_window,
        "frp": model.frp, "recoupling": model.recoupling, "SEHeads": model.recoupling_heads,
        "knn_attention": model.knn_attention, "N": model.temporal_blocks, "low_frames": low, "media_frames": medium,
        "high_frames": high, "temp": list(loss.temperature), "sharpness": loss.sharpness, "epochs": 100, "epoch": 0,
        "temper": loss.distillation_temperature, "distill": loss.distillation, "loss_lamdb": list(loss.branch_weights),
        "grad_clip": config.optimizer.gradient_clip,
    }  # fmt: skip
