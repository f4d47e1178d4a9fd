"""Trains the reference by its own `tools/train.py` or `tools/fusion.py`, from the user's checkout.

Only what its code fixes for another machine or data set is replaced:

- the number of classes and, with other than 64 frames, the layers of the recoupling module that have 64 written in;
- the table of temperatures is made for at least 30 epochs, the length of its warm-up;
- a group of one process without a launcher; on a CPU without CUDA and NCCL;
- what NumPy 2 has removed: `np.int0`, and the sum of a generator that counts the parameters;
- plots of the best epoch are left out, and packages that are imported for them may be missing.

After each of its evaluations the network is evaluated once more, on every clip once.
"""

import json
import logging
import multiprocessing
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch.utils.data import DataLoader

from benchmarking.accuracies import Accuracies
from benchmarking.reference import import_from, network_settings
from benchmarking.reference_loader import loader_settings, stand_in_for_loader

_TEMPERATURE_EPOCHS = 30


def train(checkout: Path, config: ConfigDict, classes: int, run: Path, seed: int) -> Accuracies:
    """Trains from the clips in `run/../../clips`, with logs and checkpoints in `run`; returns the accuracies by epoch.

    It changes the process: its modules, working directory and standard streams. Fusion starts from the best
    checkpoints of the same seed in `run/../../rgb` and `run/../../depth`.
    """
    for number in (1, 2):
        os.dup2(os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    multiprocessing.set_start_method("fork", force=True)  # of its loader's workers, as on Linux it has been
    run.mkdir(exist_ok=True)
    is_fusion = config.modality == "fusion"
    settings = training_settings(config)
    if is_fusion:
        for modality in ("rgb", "depth"):
            saved = (run.parents[1] / modality / run.name).glob("*/model_best.pth.tar")
            settings[f"{modality}_checkpoint"] = str(max(saved))  # its folders are named by time
    (run / "settings.json").write_text(json.dumps({"all": settings}, indent=1))
    os.chdir(run.parents[1] / "clips")
    stand_in_for_loader()
    reader: Any = types.ModuleType("yaml")
    reader.load, reader.FullLoader = lambda file, Loader: json.load(file), None  # noqa: N803
    sys.modules["yaml"] = reader
    sys.argv = ["train.py", f"--config={run / 'settings.json'}", f"--save={run}", f"--seed={seed}"]
    logging.root.handlers.clear()  # its own one is to be the first
    name = "tools.fusion" if is_fusion else "tools.train"
    build, temporal, script = import_from(str(checkout), "lib.model.build", "lib.model.DTN", name)
    _run_in_this_process()
    if config.model.recoupling and config.clip.frames != 64:
        _fit_recoupling(temporal, config.clip.frames)
    network = build.CrossFusionNet if is_fusion else build.DSNNet
    accuracies: dict[str, list[float]] = {"top1": [], "reference_protocol": []}
    theirs, started, apart = script.infer, time.monotonic(), 0.0

    def build_model(args: Any) -> torch.nn.Module:
        epochs, args.epochs = args.epochs, max(args.epochs, _TEMPERATURE_EPOCHS)
        model = network(args, num_classes=classes, pretrained=args.pretrained)
        args.epochs, args.num_classes = epochs, classes
        return model

    def infer(queue: Any, model: Any, *arguments: Any) -> Any:
        nonlocal apart
        found = theirs(queue, model, *arguments)
        heads = [found[3][head].avg for head in ("Acc_all", "Acc", "Acc_3")] if is_fusion else [found[0]]
        accuracies["reference_protocol"].append(max(heads))
        begun = time.monotonic()
        accuracies["top1"].append(_top1(model, queue, temporal, is_fusion))
        apart += time.monotonic() - begun
        return found

    replaced = {"build_model": build_model, "infer": infer, "EvaluateMetric": lambda **_: None}
    for name, function in replaced.items():
        setattr(script, name, function)
    script.utils.count_parameters_in_MB = lambda model: sum(each.numel() for each in model.parameters()) / 1e6
    script.main(0, 1, script.args)
    seconds = time.monotonic() - started - apart
    torch.distributed.destroy_process_group()
    return Accuracies(epochs=accuracies, seconds=seconds)


def training_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the reference's settings that a config stands for."""
    nvgesture, is_fusion = config.data.transforms.reference_nvgesture_crop, config.modality == "fusion"
    optimizer, schedule, training = config.optimizer, config.schedule, config.train
    return {
        **network_settings(config),
        **loader_settings(config),
        "Network": "FusionNet" if is_fusion else "I3DWTrans",
        "dataset": "NvGesture" if nvgesture else "THUREAD",
        "type": "K" if config.modality == "depth" else "M",
        **{"data": ".", "splits": "depth" if config.modality == "depth" else "rgb"},
        **{"batch_size": training.batch_size, "test_batch_size": config.eval.batch_size},
        **{"epochs": training.epochs, "num_workers": config.data.workers, "report_freq": training.log_every_steps},
        **{"optim": "SGD", "momentum": optimizer.momentum, "weight_decay": optimizer.weight_decay},
        **{"learning_rate": schedule.learning_rate, "learning_rate_min": schedule.minimum},
        "scheduler": {"name": "cosin", "patience": 0, "warm_up_epochs": schedule.warm_up_epochs},
        **{"loss": {"name": "CE", "labelsmooth": True}, "MultiLoss": config.loss.multi_branch},
        **{"pretrained": config.init_from, "resumelr": False, "dist": True, "SYNC_BN": 0},
        **{"visdom": {"enable": False}, "vis_feature": False},
    }


def _run_in_this_process() -> None:
    """Makes a group of this process alone, and on a machine without CUDA everything that it moves there stay."""
    has_cuda, begin = torch.cuda.is_available, torch.distributed.init_process_group
    on_cpu = not has_cuda()
    cuda: Any = torch.cuda

    def init_process_group(backend: str) -> None:
        cuda.is_available = has_cuda
        begin("gloo" if on_cpu else backend, store=torch.distributed.HashStore(), rank=0, world_size=1)

    distributed: Any = torch.distributed
    distributed.init_process_group = init_process_group
    if on_cpu:
        parallel: Any = torch.nn.parallel
        replicate = parallel.DistributedDataParallel
        parallel.DistributedDataParallel = lambda model, device_ids, **options: replicate(model, **options)
        cuda.is_available, cuda.set_device = lambda: True, lambda device: None  # it refuses to run otherwise
        for kind in (torch.Tensor, torch.nn.Module):
            setattr(kind, "cuda", lambda self, *_, **__: self)  # noqa: B010


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


@torch.no_grad()
def _top1(model: Any, queue: DataLoader, temporal: Any, is_fusion: bool) -> float:
    """Returns the accuracy on every clip once, of the logits, with the middle frames of each branch."""
    dataset: Any = queue.dataset
    parts = np.array_split(np.arange(len(dataset)), -(-len(dataset) // (queue.batch_size or 1)))  # none of one clip
    batches = DataLoader(dataset, batch_sampler=[part.tolist() for part in parts], num_workers=queue.num_workers)
    drawn, temporal.random = temporal.random, types.SimpleNamespace(choice=lambda members: int(np.mean(members)))
    correct = 0
    for clips, heat, label, _ in batches:
        label = label.cuda()
        inputs = [[x.cuda() for x in each] if isinstance(each, list) else each.cuda() for each in (clips, heat)]
        (logits, *_), *_ = model(*inputs, label) if is_fusion else model(*inputs)
        correct += (logits.reshape(len(label), -1).argmax(-1) == label).sum().item()
    temporal.random = drawn
    return correct / len(dataset)
