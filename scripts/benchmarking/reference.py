"""The reference's side: its own network, loss and optimizer from a checkout that the user has, in PyTorch.

Nothing of it is copied here. What its modules import and the network does not use (plots, its data sets' libraries) is
stood in for where it is not installed.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarking import memory, worker

# Imported by the reference, not used by what is measured.
_NOT_NEEDED = ("torchvision", "visdom", "sklearn", "seaborn", "matplotlib", "pandas", "PIL", "yaml", "cv2")


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, last of all, modules that are not installed and not needed; whatever is asked of them is there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in _NOT_NEEDED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []  # it has submodules
        module.__getattr__ = _stand_in  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _stand_in(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda *_: None})


class Reference:
    """The reference's network with given weights and inputs.

    Args:
        checkout: the folder of its repository.
        arguments: settings of its network, by its own names.
        num_classes: number of classes.
        inputs: the file of `ours.Ours.save_inputs`.
        mixed: whether its mixed precision is on (float16 with a scaled loss, TF32), on an accelerator.
    """

    def __init__(self, checkout: str, arguments: dict, num_classes: int, inputs: str, mixed: bool):
        stand_ins = _StandIns()
        sys.meta_path.append(stand_ins)
        sys.path.insert(0, checkout)
        network = importlib.import_module("lib.model.DSN").DSNNet
        temporal = importlib.import_module("lib.model.DTN")
        smoothed = importlib.import_module("utils.build").LabelSmoothingCrossEntropy
        sys.meta_path.remove(stand_ins)  # what PyTorch itself imports later is to be missing where it is missing
        # It puts lists on the path, which Triton's search for its backends does not take.
        sys.path[:] = [place for place in sys.path if isinstance(place, str)]
        torch.manual_seed(0)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)  # noqa: B010 (FRP asks for it)
        self._mixed = mixed and self._device.type == "cuda"
        torch.backends.cudnn.benchmark = True  # as its training has it
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mixed
        self._settings = types.SimpleNamespace(**arguments)
        self._network = network(self._settings, num_classes=num_classes)
        with np.load(inputs) as given:
            weights = {
                name.removeprefix("weights/"): torch.from_numpy(given[name])
                for name in given.files
                if name.startswith("weights/")
            }
            self._clip, self._label = (torch.from_numpy(given[name]) for name in ("clip", "label"))
            self._heat = torch.from_numpy(given["heat"]) if "heat" in given.files else None
        missing, unexpected = self._network.load_state_dict(weights, strict=False)
        other = [name for name in missing if not name.endswith("num_batches_tracked")]
        if other or unexpected:
            raise ValueError(f"{checkout} is another network: missing {other[:5]}, unexpected {unexpected[:5]}")
        # It draws the frames of its branches in evaluation too; ours takes the middle ones. The time is the same.
        middle = types.SimpleNamespace(choice=lambda members: int(np.mean(members)))
        setattr(temporal, "random", middle)  # noqa: B010 (no type checker knows of it)
        self._clip = self._placed(self._clip)
        self._heat = None if self._heat is None else self._placed(self._heat)
        self._label = self._label.to(self._device)
        self._network.to(self._device)
        self._criterion = smoothed()
        self._optimizer = torch.optim.SGD(self._network.parameters(), 1e-3, momentum=0.9, weight_decay=3e-4)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._mixed)

    def run(self, name: str) -> float:
        """Does a training step or an inference and returns the seconds."""
        self._wait()
        started = time.perf_counter()
        self._train() if name == "train" else self._infer()
        self._wait()
        return time.perf_counter() - started

    def logits(self) -> list[list[float]]:
        """Returns the logits of the last inference."""
        return self._logits.double().reshape(len(self._label), -1).tolist()

    def peak(self, name: str) -> int | None:
        """Returns the most bytes that were held at once during one more run."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.run(name)
            return torch.cuda.max_memory_allocated()
        memory.forget_peak()
        self.run(name)
        return memory.peak()

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 4, 1, 2, 3).contiguous().to(self._device)  # b t h w c -> b c t h w

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _train(self) -> None:
        """One step as its training loop does it: losses of the whole and of the branches, distillation, clipping."""
        self._network.train()
        with torch.autocast(self._device.type, enabled=self._mixed):
            heads, distillation, _ = self._network(self._clip, self._heat)
            weights = self._settings.loss_lamdb
            loss = sum(
                weight * self._criterion(logits, self._label) for weight, logits in zip(weights, heads, strict=True)
            )
            loss = loss + self._settings.distill * distillation
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.grad_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _infer(self) -> None:
        self._network.eval()
        with torch.no_grad(), torch.autocast(self._device.type, enabled=self._mixed):
            (self._logits, *_), _, _ = self._network(self._clip, self._heat)


def serve() -> None:
    """Answers the calls of the benchmark."""
    told = worker.settings()
    checkout = Path(told["checkout"])
    reference = Reference(str(checkout), told["arguments"], told["classes"], told["inputs"], told["mixed"])
    worker.answer({name: getattr(reference, name) for name in ("run", "logits", "peak")})
