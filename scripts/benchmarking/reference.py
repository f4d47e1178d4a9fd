"""The reference's side: its own network, loss and optimizer from the user's checkout, in PyTorch; nothing is copied.

What its modules import and the network does not use (plots, its data sets' libraries) is replaced by stand-ins where it
is not installed.
"""

import contextlib
import importlib
import importlib.machinery
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarking.sides import peak_of_process

# Imported by the reference, not used by what is measured.
_NOT_NEEDED = ("torchvision", "visdom", "sklearn", "seaborn", "matplotlib", "pandas", "PIL", "yaml", "cv2", "timm")


class StandIn(types.ModuleType):
    """A module whose names are all classes that do nothing."""

    __path__ = ()  # type: ignore[assignment]  # it has submodules

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_: None})


class _StandIns:
    """Finds, last of all, modules that are not installed and not needed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = name.partition(".")[0] in _NOT_NEEDED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def import_from(checkout: str, *names: str) -> list[types.ModuleType]:
    """Imports modules of the checkout, with stand-ins for what is not installed and not needed."""
    stand_ins: Any = _StandIns()
    sys.meta_path.append(stand_ins)
    sys.path.insert(0, checkout)
    modules = [importlib.import_module(name) for name in names]
    sys.meta_path.remove(stand_ins)  # what PyTorch itself imports later is to be missing where it is missing
    # It puts lists on the path, which Triton's search for its backends does not take.
    sys.path[:] = [entry for entry in sys.path if isinstance(entry, str)]
    return modules


class Reference:
    """The reference's network, in mixed precision for bfloat16 on an accelerator, with our side's weights and inputs.

    `checkout` is the folder of its repository, `inputs` the file of `ours.Ours.save_inputs`.
    """

    def __init__(self, checkout: str, config: ConfigDict, num_classes: int, inputs: Path):
        torch.manual_seed(0)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)  # noqa: B010 (FRP calls it)
        mixed = config.model.dtype == "bfloat16"
        self._mixed = mixed and self._device.type == "cuda"
        torch.backends.cudnn.benchmark = True  # as its training has it
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mixed
        self._settings = types.SimpleNamespace(**network_settings(config))
        with contextlib.redirect_stdout(sys.stderr):  # they print what they are
            self._network = self._make(checkout, num_classes)
        with np.load(inputs) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        weights = {name.removeprefix("weights/"): x for name, x in tensors.items() if name.startswith("weights/")}
        missing, unexpected = self._network.load_state_dict(weights, strict=False)
        other = [name for name in missing if not name.endswith("num_batches_tracked")]
        if other or unexpected:
            raise ValueError(f"{checkout} is another network: missing {other[:5]}, unexpected {unexpected[:5]}")
        self._network.to(self._device)
        self._label = tensors["label"].to(self._device)
        self._inputs = [  # b t h w c -> b c t h w
            tensors[name].permute(0, 4, 1, 2, 3).contiguous().to(self._device) if name in tensors else None
            for name in ("clip", "heat")
        ]
        self._optimizer = torch.optim.SGD(self._network.parameters(), 1e-3, momentum=0.9, weight_decay=3e-4)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._mixed)

    def _make(self, checkout: str, num_classes: int) -> torch.nn.Module:
        spatial, temporal, losses = import_from(checkout, "lib.model.DSN", "lib.model.DTN", "utils.build")
        # It draws the frames of its branches in evaluation too; ours takes the middle ones. The time is the same.
        middle = types.SimpleNamespace(choice=lambda members: int(np.mean(members)))
        setattr(temporal, "random", middle)  # noqa: B010 (no type checker knows of it)
        self._criterion = losses.LabelSmoothingCrossEntropy()
        return spatial.DSNNet(self._settings, num_classes=num_classes)

    def _training_outputs(self) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        heads, distillation, _ = self._network(*self._inputs)
        return heads, distillation

    def run(self, part: str) -> float:
        """Does a training step or an inference and returns the seconds."""
        self._wait()
        started = time.perf_counter()
        self._train() if part == "train" else self._infer()
        self._wait()
        return time.perf_counter() - started

    def logits(self) -> np.ndarray:
        """Returns the logits of the last inference."""
        return self._logits.double().reshape(len(self._label), -1).cpu().numpy()

    def peak(self, part: str) -> int | None:
        """Returns the most bytes that were held at once during one more run."""
        if self._device.type == "cpu":
            return peak_of_process(lambda: self.run(part))
        torch.cuda.reset_peak_memory_stats()
        self.run(part)
        return torch.cuda.max_memory_allocated()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _train(self) -> None:
        """One step as its training loop does it: losses of all heads, distillation, clipping."""
        self._network.train()
        with torch.autocast(self._device.type, enabled=self._mixed):
            heads, distillation = self._training_outputs()
            terms = zip(self._settings.loss_lamdb, heads, strict=True)
            loss = sum(weight * self._criterion(logits, self._label) for weight, logits in terms)
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
            (self._logits, *_), *_ = self._network(*self._inputs)


class UMDRReference(Reference):
    """The same for the authors' second repository."""

    def _make(self, checkout: str, num_classes: int) -> torch.nn.Module:
        spatial, losses = import_from(checkout, "lib.model.DSN_v2", "utils.build")
        self._criterion, self._distillation = losses.LabelSmoothingCrossEntropy(), losses.RCM_loss(self._settings, None)
        return spatial.DSNNetV2(self._settings, num_classes)

    def _training_outputs(self) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        heads, recoupled = self._network(*self._inputs)
        return heads, self._distillation(recoupled)


REFERENCES = {"decoupled": Reference, "umdr": UMDRReference}  # by config.network


def network_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings of the reference's network, by its own names, that a config stands for."""
    model, loss = config.model, config.loss
    low, medium, high = model.branch_frames
    return {
        "Network": "I3DWTrans",
        "dataset": "THU" if model.recoupling_hidden == 128 else "NTU",
        **{"w": model.frp_window, "frp": model.frp, "recoupling": model.recoupling, "SEHeads": model.recoupling_heads},
        **{"knn_attention": model.knn_attention, "N": model.temporal_blocks, "temper": loss.distillation_temperature},
        **{"low_frames": low, "media_frames": medium, "high_frames": high},
        **{"temp": list(loss.temperature), "sharpness": loss.sharpness, "epochs": 100, "epoch": 0},
        **{"distill": loss.distillation, "loss_lamdb": list(loss.branch_weights)},
        "grad_clip": config.optimizer.gradient_clip,
        **{"sample_duration": config.clip.frames, "intar_fatcer": config.clip.frames // low},  # the second's
    }
