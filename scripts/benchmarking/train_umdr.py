"""Training of UMDR's reference: what its `train.py` and `train_fusion.py` need, timm included.

Its evaluation before the first epoch is not counted.
"""

import importlib.util
import itertools
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

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
    if importlib.util.find_spec("timm") is None:
        raise ValueError("UMDR's reference trains with timm's optimizer and schedule: install timm and torchvision")
    is_fusion = config.modality == "fusion"
    settings = training_settings(config, classes)
    if is_fusion:
        for modality in ("rgb", "depth"):
            settings[f"{modality}_checkpoint"] = {"cs32": shims.best_checkpoint(run, modality)}
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    end_pretence = shims.run_in_this_process()
    name = "train_fusion" if is_fusion else "train"
    modules: list[Any] = [*import_from(str(checkout), "lib.model.build", "lib.model.DTN_v2", "lib.datasets.base", name)]
    build, temporal, base, script = modules
    base.Datasets.get_path = _frame_path
    plotted: Any = sys.modules["sklearn.metrics"]
    plotted.confusion_matrix = lambda *_, **__: np.zeros((0, 0))
    script.plt, script.sns, script.EvaluateMetric = MagicMock(), MagicMock(), lambda **_: None
    for name in ("count_parameters_in_MB", "count_learnable_parameters_in_MB"):
        setattr(script.utils, name, lambda model: sum(each.numel() for each in model.parameters()) / 1e6)
    arguments = [f"--config={shims.settings_file(run, settings)}", f"--save={run}", f"--seed={seed}"]
    script.args = args = script.Config(script.get_args_parser().parse_args(arguments))
    args.device = "cuda" if torch.version.cuda and torch.cuda.device_count() else "cpu"
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s")
    theirs, network, evaluations = script.infer, build.build_model, itertools.count()
    _lengthen_temperatures(temporal)

    def build_model(args: Any) -> torch.nn.Module:
        end_pretence()
        return network(args)

    def infer(queue: Any, model: Any, *others: Any) -> Any:
        found = theirs(queue, model, *others)
        if next(evaluations):
            recorder.add(found[0] / 100, partial(_top1, others[-1] if is_fusion else None), model, queue)
        return found

    script.build_model, script.infer = build_model, infer
    return partial(script.main, args)


def training_settings(config: ConfigDict, classes: int) -> dict[str, Any]:
    """Returns the settings, by the reference's names, that a config stands for."""
    schedule, loss, mixing = config.schedule, config.loss, config.mixing
    return {
        **network_settings(config),
        **loader_settings(config),
        **shims.common_settings(config),
        **{"Network": "DSNV2", "num_classes": classes, "frp": False, "frp_num": 0, "w": 4},
        **{"pretrained": "", "finetune": config.init_from},
        **{
            "opt": "sgd" if config.optimizer.arguments.nesterov else "momentum",
            "clip_grad": config.optimizer.gradient_clip,
        },
        **{"sched": schedule.name.removeprefix("timm_"), "lr": schedule.learning_rate, "min_lr": schedule.minimum},
        **{"warmup_epochs": schedule.warm_up_epochs, "decay_epochs": schedule.decay_epochs},
        **{"decay_rate": schedule.factor, "decay_milestones": list(schedule.milestones)},
        **{"mixup": mixing.mixup_alpha, "mixup_prob": mixing.mixup_probability, "smoothing": loss.label_smoothing},
        **{"shufflemix": mixing.shufflemix_alpha, "smprob": mixing.shufflemix_probability},
        "loss": {"name": "SoftCE" if mixing.mixup_alpha else "CE", "labelsmooth": True},
        **{"scc_depth": config.fusion.spatial_blocks, "tcc_depth": config.fusion.temporal_blocks},
    }


def _frame_path(_: Any, folder: str, number: int) -> str:
    """Returns the file of a frame, JPEG or, of depth, PNG, as the first reference looks for it."""
    colour = Path(folder, f"{number:06d}.jpg")
    return str(colour if colour.exists() else Path(folder, f"MDepth-{number + 1:08d}.png"))


def _lengthen_temperatures(temporal: Any) -> None:
    """Makes the table of temperatures for at least the epochs of its warm-up."""
    make = temporal.DTNNet.__init__

    def make_longer(module: Any, args: Any, *arguments: Any, **options: Any) -> None:
        epochs, args.epochs = args.epochs, max(args.epochs, shims.TEMPERATURE_EPOCHS)
        make(module, args, *arguments, **options)
        args.epochs = epochs

    temporal.DTNNet.__init__ = make_longer


def _top1(trunks: Any, model: Any, queue: DataLoader) -> float:
    """Returns the accuracy on every clip once: of the logits, in fusion of the sum of all heads'."""
    found = []
    for (clips, _), label in shims.each_clip_once(queue):
        if trunks is None:
            (logits, *_), _ = model(clips)
        else:
            (rgb, *_), (depth, *_), features = trunks(*clips)
            (fused_rgb, fused_depth), _ = model(features)
            logits = rgb + depth + fused_rgb + fused_depth
        found.append(shims.correct(logits, label))
    return torch.cat(found).mean().item()
