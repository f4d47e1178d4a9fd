"""Initial values: PyTorch's defaults, as in the reference."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

Tree = Mapping[str, Any]


def initial_values(params: Tree, batch_stats: Tree, seed: int) -> tuple[dict, dict]:
    """Returns initial (parameters, batch statistics).

    Each tensor is a function of the seed, its name and its shape, on every machine: kernels, and the biases beside
    them, uniform in +-1/sqrt(fan in); class tokens and position embeddings standard normal; scales 1, biases of
    normalisations 0; running mean 0 and variance 1; the FRP mixture (1, 0).

    Args:
        params: nested dict of the parameters' shapes and types.
        batch_stats: nested dict of the running statistics' shapes and types.
        seed: the experiment's seed.
    """
    flat = traverse_util.flatten_dict(params)
    values = {}
    for path, leaf in flat.items():
        rng = np.random.default_rng([seed, zlib.crc32(".".join(path).encode())])
        kernel = flat.get((*path[:-1], "kernel"))
        if path[-1] in ("class_token", "position_embedding"):
            value = rng.standard_normal(leaf.shape)
        elif path[-1] == "mixture":
            value = np.asarray([1.0, 0.0])
        elif kernel is not None:
            stacked = (path[-1] == "bias" and leaf.ndim == 2) or (path[-1] == "kernel" and leaf.ndim == 3)
            bound = np.prod(kernel.shape[stacked:-1]) ** -0.5
            value = rng.uniform(-bound, bound, leaf.shape)
        else:
            value = np.full(leaf.shape, path[-1] == "scale")
        values[path] = value.astype(leaf.dtype)
    statistics = {
        path: np.full(leaf.shape, path[-1] == "variance", leaf.dtype)
        for path, leaf in traverse_util.flatten_dict(batch_stats).items()
    }
    return traverse_util.unflatten_dict(values), traverse_util.unflatten_dict(statistics)
