"""What the training scripts of both references need on another machine and data set.

Only what their code fixes is replaced:

- the number of classes; in the first network with other than 64 frames, the layers that have 64 written in;
- the table of temperatures is made for at least 30 epochs, the length of its warm-up;
- a group of one process without a launcher; on a CPU without CUDA and NCCL;
- names that newer NumPy and SciPy have removed, and the sum of a generator that counts the parameters;
- plots are left out, and packages that are imported for them may be missing.

After each of their evaluations the network is evaluated once more, on every clip once.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch.utils.data import DataLoader

TEMPERATURE_EPOCHS = 30
Accuracy = Callable[[Any, DataLoader], float]


class Recorder:
    """Notes the accuracies of both protocols, and how long the second of them took."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[float]] = {"top1": [], "reference_protocol": []}
        self.seconds = 0.0

    def add(self, protocol: float, top1: Accuracy, model: Any, queue: DataLoader) -> None:
        """Adds an epoch: what the reference has found, and the accuracy on every clip once."""
        started = time.monotonic()
        self.epochs["reference_protocol"].append(protocol)
        with torch.no_grad():
            self.epochs["top1"].append(top1(model, queue))
        self.seconds += time.monotonic() - started


def settings_file(run: Path, settings: dict[str, Any]) -> Path:
    """Writes the settings of a training; returns the file, which the reference reads as if it were YAML."""
    (run / "settings.json").write_text(json.dumps({"all": settings}, indent=1))
    return run / "settings.json"


def best_checkpoint(run: Path, modality: str) -> str:
    """Returns the best checkpoint of the training of a modality with the seed of `run`."""
    files = (run.parents[1] / modality / run.name).rglob("model_best.pth.tar")  # folders are named by time
    return str(max(files))


def common_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that both references have by the same names."""
    nvgesture, training = config.data.transforms.reference_nvgesture_crop, config.train
    return {
        "dataset": "NvGesture" if nvgesture else "THUREAD",
        "type": "K" if config.modality == "depth" else "M",
        **{"data": ".", "splits": "depth" if config.modality == "depth" else "rgb"},
        **{"batch_size": training.batch_size, "test_batch_size": config.eval.batch_size},
        **{"epochs": training.epochs, "num_workers": config.data.workers, "report_freq": training.log_every_steps},
        **{"momentum": config.optimizer.momentum, "weight_decay": config.optimizer.weight_decay},
        **{"MultiLoss": config.loss.multi_branch, "resumelr": False, "dist": True, "SYNC_BN": 0},
        **{"visdom": {"enable": False}, "vis_feature": False},
    }


def run_in_this_process() -> Callable[[], None]:
    """Makes a group of this process alone, and on a machine without CUDA everything that it moves there stay.

    Returns what ends the pretence of CUDA, which its training begins by asking for.
    """
    cuda: Any = torch.cuda
    has_cuda, begin = cuda.is_available, torch.distributed.init_process_group
    on_cpu = not has_cuda()

    def end() -> None:
        cuda.is_available = has_cuda

    def init_process_group(backend: str, **_: Any) -> None:
        end()
        begin("gloo" if on_cpu else backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        cuda.is_available = lambda: True

    distributed: Any = torch.distributed
    distributed.init_process_group = init_process_group
    if on_cpu:
        parallel: Any = torch.nn.parallel
        replicate = parallel.DistributedDataParallel
        parallel.DistributedDataParallel = lambda model, device_ids, **options: replicate(model, **options)
        cuda.is_available, cuda.set_device, cuda.synchronize = lambda: True, lambda device: None, lambda: None
        for kind in (torch.Tensor, torch.nn.Module):
            setattr(kind, "cuda", lambda self, *_, **__: self)  # noqa: B010
    return end


def each_clip_once(queue: DataLoader) -> Iterator[tuple[list, torch.Tensor]]:
    """Yields the inputs and labels of all clips of an evaluation; no batch is of one clip."""
    dataset: Any = queue.dataset
    clips = list({clip: i for i, clip in enumerate(getattr(dataset, "inputs", range(len(dataset))))}.values())
    count = -(-len(clips) // (queue.batch_size or 1))
    parts = [clips[i::count] for i in range(count)]
    for inputs, heat, label, _ in DataLoader(dataset, batch_sampler=parts, num_workers=queue.num_workers):
        yield (
            [[x.cuda() for x in each] if isinstance(each, list) else each.cuda() for each in (inputs, heat)],
            label.cuda(),
        )


def correct(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Returns for every clip whether it is recognised, also where a batch of one has lost its axis."""
    return (logits.reshape(len(label), -1).argmax(-1) == label).double()
