"""Small networks of every kind, as PyTorch would save them."""

from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from rgbd_jax.model import Model
from rgbd_jax.models.name_table import parameter_groups
from rgbd_jax.pytorch import convert as convert_module
from tests.parity import recipe
from tests.tiny import run_command, tiny_config

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
GROUP = {"lr": 0.005, "momentum": 0.9, "dampening": 0, "weight_decay": 3e-4, "nesterov": False, "maximize": False}
GROUP |= {"foreach": None, "initial_lr": 0.01}


def small_config(stream: str = "rgb", **model: Any) -> ConfigDict:
    """Returns the tiny config with other settings of the network."""
    config = tiny_config("unused", stream)
    config.model.update(model)
    return config


def manifest_of(config: ConfigDict, classes: int) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the PyTorch state dict of a network, step counters included."""
    shapes: dict[str, tuple[int, ...]] = {}
    model = Model(config, classes)
    for name, tensor in model.family.name_table.to_pytorch(*model.shapes()).items():
        shapes[name] = tensor.shape
        if name.endswith("running_var"):
            shapes[name.replace("running_var", "num_batches_tracked")] = ()
    return shapes


def random_state_dict(
    manifest: dict[str, tuple[int, ...]], dtype: str = "float32", seed: int = 1
) -> dict[str, np.ndarray]:
    """Returns seeded tensors of any type; every BatchNorm has seen another number of steps."""
    tensors = {}
    for number, (name, value) in enumerate(recipe.state_dict(manifest, seed).items()):
        counter = name.endswith("num_batches_tracked")
        tensors[name] = np.asarray(1000 * seed + number, np.int64) if counter else value.astype(DTYPES[dtype])
    return tensors


def checkpoint(
    tensors: dict[str, np.ndarray],
    *,
    prefix: str = "",
    optimizer: bool = True,
    epoch: int = 7,
    decay_vectors: bool = True,
) -> dict[str, Any]:
    """Returns what the reference's training would save; every fifth parameter has no momentum buffer yet."""
    contents: dict[str, Any] = {"model": OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())}
    if optimizer:
        groups = parameter_groups(tensors, decay_vectors=decay_vectors)
        names = [name for group in groups for name in group]
        state = {
            number: {"momentum_buffer": momentum_buffer(tensors[name]) if number % 10 else None}
            for number, name in enumerate(names)
            if number % 5
        }
        param_groups = [{**GROUP, "params": list(range(len(names)))[-len(groups[-1]) :]}]
        if not decay_vectors:
            param_groups.insert(0, {**GROUP, "weight_decay": 0.0, "params": list(range(len(groups[0])))})
        contents["optimizer"] = {"state": state, "param_groups": param_groups}
    return {**contents, "epoch": epoch, "bestacc": 0.625}


def momentum_buffer(tensor: np.ndarray) -> np.ndarray:
    """Returns a buffer that differs from the tensor and from every other one."""
    return (tensor.astype(np.float64) * -0.25 + 0.125).astype(tensor.dtype)


def convert(*arguments: Any) -> None:
    """Runs `rgbd convert` with these arguments."""
    run_command(convert_module, *arguments)
