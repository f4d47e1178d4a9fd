"""A network as StableHLO: one zip file of `model.jax_export` (program and weights, by jax.export) and `about.json`."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.modalities import STREAMS
from rgbd_jax.tools.exporting.function import as_function, input_shape

MODEL, ABOUT = "model.jax_export", "about.json"
SOURCE_PATTERN = "jax_hlo_source_file_canonicalization_regex"


def to_stablehlo(trained: TrainedModel, platforms: Sequence[str]) -> bytes:
    """Returns a network's program for batches of any size, with its weights, as jax.export serialises it.

    jax.export refuses operations that it does not promise to keep for later versions of JAX.

    Args:
        trained: the network.
        platforms: kinds of device that it will run on ("cpu", "cuda", "rocm", "tpu"); none of them is needed here.

    Raises:
        ValueError: a library is missing.
    """
    (batch,) = export.symbolic_shape("batch")
    frames = jax.ShapeDtypeStruct((batch, *input_shape(trained)), jnp.uint8)
    # Where in the source an operation stands would be told with the folders of this machine.
    canonical = getattr(jax.config, SOURCE_PATTERN)
    jax.config.update(SOURCE_PATTERN, ".*/")
    try:
        exported = export.export(jax.jit(as_function(trained)), platforms=list(platforms))(
            *[frames] * len(STREAMS[trained.config.modality])
        )
        return bytes(exported.serialize())
    except ImportError as error:
        raise ValueError(f"jax.export needs a library that is not installed: {error}") from error
    finally:
        jax.config.update(SOURCE_PATTERN, canonical)


def write_stablehlo(path: Path, model: bytes, about: Mapping[str, Any]) -> None:
    """Writes the zip file; weights hardly shrink when compressed, and are stored as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        file.writestr(MODEL, model)


def read_stablehlo(path: Path) -> Callable:
    """Returns what a file makes of frames."""
    with zipfile.ZipFile(path) as file:
        return jax.jit(export.deserialize(bytearray(file.read(MODEL))).call)
