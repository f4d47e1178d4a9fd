"""Initial values: PyTorch's defaults, as in the reference."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Tree = Mapping[str, Any]


def initial_values(params: Tree, batch_stats: Tree, seed: int) -> tuple[dict, dict]:
    """Returns initial (parameters, batch statistics) for nested dicts of their shapes and types.

    Each tensor is a function of the seed, its name and its shape, on every machine: kernels, and the biases beside
    them, uniform in +-1/sqrt(fan in); class tokens and position embeddings standard normal; scales 1, biases of
    normalisations 0; running mean 0 and variance 1; the FRP mixture (1, 0).
    """
    flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)  # which frozen kernels are in

    def value(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(".".join(path).encode())])
        name, kernel = path[-1], flat.get((*path[:-1], "kernel"))
        if name in ("class_token", "position_embedding"):
            return rng.standard_normal(leaf.shape)
        if name == "mixture":
            return np.asarray([1.0, 0.0])
        if kernel is None:
            return np.full(leaf.shape, name in ("scale", "variance"))
        stacked = leaf.ndim == {"bias": 2, "kernel": 3}[name]
        bound = np.prod(kernel.shape[stacked:-1]) ** -0.5
        return rng.uniform(-bound, bound, leaf.shape)

    def values(tree: Tree) -> dict:
        leaves = traverse_util.flatten_dict(tree)
        return traverse_util.unflatten_dict({path: value(path, x).astype(x.dtype) for path, x in leaves.items()})

    return values(params), values(batch_stats)
