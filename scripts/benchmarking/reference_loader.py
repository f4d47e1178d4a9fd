"""The reference's loader: its own data set class from the user's checkout, on frames of our prepared clips as files.

Where torchvision is not installed, the three transforms that it uses are written out here in PyTorch.
"""

import importlib
import importlib.util
import random
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarking.reference import StandIn, import_from


class ReferenceLoader:
    """Loads training clips that `layout.write_clips` has written, with their heat maps, on one core."""

    def __init__(self, checkout: str, config: ConfigDict, folder: Path):
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        stand_in_for_loader()
        (base,) = import_from(checkout, "lib.datasets.base")
        random.seed(0)
        own = {"data": str(folder), "w": config.model.frp_window, "batch_size": 1, "nprocs": 1}
        settings = types.SimpleNamespace(**loader_settings(config), **own)
        self._clips = base.Datasets(settings, str(folder / "clips.txt"), config.modality, phase="train")
        self._taken = 0

    def run(self) -> float:
        """Loads the next clip and returns the seconds."""
        path, count, _ = self._clips.inputs[self._taken % len(self._clips)]
        self._taken += 1
        started = time.perf_counter()
        self._clips.image_propose(str(Path(self._clips.dataset_root, path)), self._clips.get_sl(count))
        return time.perf_counter() - started


def loader_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings of the reference's loader, by its own names, that a config stands for."""
    transforms = config.data.transforms
    return {
        **{"sample_duration": config.clip.frames, "sample_size": config.clip.size, "Blur": transforms.blur},
        **{"resize": str(tuple(transforms.resize)), "crop_size": transforms.crop_size},
        **{"flip": transforms.flip_probability, "rotated": transforms.rotation_probability},
        "angle": str(tuple(transforms.rotation_degrees)),
    }


def stand_in_for_loader() -> None:
    """Provides what its modules need and may not be installed: three transforms of torchvision, a name of NumPy 1."""
    if importlib.util.find_spec("torchvision") is None:
        used = types.SimpleNamespace(Compose=_compose, ToTensor=_to_tensor, Grayscale=_grayscale)
        torchvision: Any = StandIn("torchvision")
        torchvision.transforms, torchvision.set_image_backend = used, lambda name: None
        sys.modules["torchvision"] = torchvision
    if not hasattr(np, "int0"):
        setattr(np, "int0", np.intp)  # noqa: B010


def _compose(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def transform(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return transform


def _to_tensor() -> Callable[[np.ndarray], torch.Tensor]:
    return lambda image: torch.from_numpy(image.transpose(2, 0, 1)).contiguous()


def _grayscale(channels: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def transform(image: torch.Tensor) -> torch.Tensor:
        red, green, blue = image.unbind(-3)
        return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)

    return transform
