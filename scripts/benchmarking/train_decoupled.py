"""Training of the first reference: what its `tools/train.py` and `tools/fusion.py` need."""

import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch.utils.data import DataLoader

from benchmarking import reference_shims as shims
from benchmarking.reference import import_from, network_settings
from benchmarking.reference_loader import loader_settings


def prepare(
    checkout: Path, config: ConfigDict, classes: int, run: Path, seed: int, recorder: shims.Recorder
) -> Callable[[], Any]:
    """Imports its script and replaces what has to be; returns the call that trains."""
    is_fusion = config.modality == "fusion"
    settings = training_settings(config)
    if is_fusion:
        settings |= {f"{modality}_checkpoint": shims.best_checkpoint(run, modality) for modality in ("rgb", "depth")}
    sys.argv = ["train.py", f"--config={shims.settings_file(run, settings)}", f"--save={run}", f"--seed={seed}"]
    name = "tools.fusion" if is_fusion else "tools.train"
    build, temporal, script = import_from(str(checkout), "lib.model.build", "lib.model.DTN", name)
    end_pretence = shims.run_in_this_process()
    if config.model.recoupling and config.clip.frames != 64:
        _fit_recoupling(temporal, config.clip.frames)
    network, theirs = build.CrossFusionNet if is_fusion else build.DSNNet, script.infer

    def build_model(args: Any) -> torch.nn.Module:
        end_pretence()
        epochs, args.epochs = args.epochs, max(args.epochs, shims.TEMPERATURE_EPOCHS)
        model = network(args, num_classes=classes, pretrained=args.pretrained)
        args.epochs, args.num_classes = epochs, classes
        return model

    def infer(queue: Any, model: Any, *arguments: Any) -> Any:
        found = theirs(queue, model, *arguments)
        heads = [found[3][head].avg for head in ("Acc_all", "Acc", "Acc_3")] if is_fusion else [found[0]]
        recorder.add(max(heads), partial(_top1, temporal, is_fusion), model, queue)
        return found

    replaced = {"build_model": build_model, "infer": infer, "EvaluateMetric": lambda **_: None}
    for name, function in replaced.items():
        setattr(script, name, function)
    script.utils.count_parameters_in_MB = lambda model: sum(each.numel() for each in model.parameters()) / 1e6
    return partial(script.main, 0, 1, script.args)


def training_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings, by the reference's names, that a config stands for."""
    schedule = config.schedule
    return {
        **network_settings(config),
        **loader_settings(config),
        **shims.common_settings(config),
        "Network": "FusionNet" if config.modality == "fusion" else "I3DWTrans",
        **{"optim": "SGD", "learning_rate": schedule.learning_rate, "learning_rate_min": schedule.minimum},
        "scheduler": {"name": "cosin", "patience": 0, "warm_up_epochs": schedule.warm_up_epochs},
        **{"loss": {"name": "CE", "labelsmooth": True}, "pretrained": config.init_from},
    }


def _fit_recoupling(temporal: Any, frames: int) -> None:
    """Makes the recoupling module's layers again for so many frames, initialised as before."""
    make, linear = temporal.RCMModule.__init__, torch.nn.Linear

    def make_to_fit(module: Any, args: Any) -> None:
        make(module, args)
        hidden, width, channels = (x.out_features for x in (module.project[0], module.q, module.linear))
        module.q, module.k = (linear(frames, width, bias=False) for _ in "qk")
        module.project[0] = linear(frames, hidden, bias=False)
        module.project[2] = linear(hidden, frames, bias=False)
        module.project[3] = torch.nn.LayerNorm(frames)
        module.linear = linear(frames, channels)

    temporal.RCMModule.__init__ = make_to_fit


def _top1(temporal: Any, is_fusion: bool, model: Any, queue: DataLoader) -> float:
    """Returns the accuracy on every clip once, of the logits, with the middle frames of each branch."""
    drawn, temporal.random = temporal.random, types.SimpleNamespace(choice=lambda members: int(np.mean(members)))
    found = []
    for inputs, label in shims.each_clip_once(queue):
        (logits, *_), *_ = model(*inputs, label) if is_fusion else model(*inputs)
        found.append(shims.correct(logits, label))
    temporal.random = drawn
    return torch.cat(found).mean().item()
