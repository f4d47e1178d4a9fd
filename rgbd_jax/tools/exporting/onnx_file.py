"""A network as one file of ONNX, by jax2onnx; what is told of it lies in the model's metadata under "about"."""

import dataclasses
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.modalities import STREAMS
from rgbd_jax.step import Stream
from rgbd_jax.tools.exporting.function import OUTPUTS, as_function, input_shape

OPSET = 23
NEEDED = ("jax2onnx", "onnx", "onnx_ir", "onnxruntime")
LARGEST = 2**31 - 1  # bytes of one file of protocol buffers
INSTALL = "pip install --no-deps --requirement requirements-onnx.txt"

log = logging.getLogger("rgbd_jax")


def check_installed() -> None:
    """Checks that the packages of requirements-onnx.txt are there.

    Raises:
        ValueError: one is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format=onnx needs {', '.join(missing)}, not installed here: {INSTALL}")


def in_float32(trained: TrainedModel) -> TrainedModel:
    """Returns the network, computing in float32; few programs that run ONNX compute in bfloat16."""
    if trained.config.model.dtype == "float32":
        return trained
    log.warning("the network computes in %s; the file of ONNX will in float32", trained.config.model.dtype)
    config = trained.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    return dataclasses.replace(trained, model=Stream(config, trained.model.num_classes))


def to_onnx(trained: TrainedModel) -> Any:
    """Returns a network as an `onnx.ModelProto` for batches of any size.

    Raises:
        ValueError: the exporter does not know an operation, or the model is too large for one file.
    """
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)  # tells of plugins for libraries that are not used here
    import jax2onnx

    modalities = STREAMS[trained.config.modality]
    frames: Any = jax.ShapeDtypeStruct(("batch", *input_shape(trained)), np.uint8)
    try:
        with warnings.catch_warnings():
            # jax2onnx asks for types while it traces that JAX narrows to those of the network.
            warnings.filterwarnings("ignore", "Explicitly requested dtype float64")
            model = jax2onnx.to_onnx(
                as_function(trained),
                [frames] * len(modalities),
                model_name="rgbd_jax",
                opset=OPSET,
                input_names=modalities,
                output_names=OUTPUTS,
            )
    except NotImplementedError as error:
        raise ValueError(f"jax2onnx cannot export this network: {error}; use --format=stablehlo") from error
    if model.ByteSize() > LARGEST:
        raise ValueError(f"the network takes {model.ByteSize()} bytes, more than a file of ONNX holds ({LARGEST})")
    return model


def write_onnx(path: Path, model: Any, about: Mapping[str, Any]) -> None:
    """Writes a model with what is told of it."""
    import onnx

    onnx.helper.set_model_props(model, {"about": json.dumps(about, ensure_ascii=False)})
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def read_onnx(path: Path) -> Callable:
    """Returns what a file makes of frames, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; it warns of constants that it leaves out
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *frames: session.run(OUTPUTS, dict(zip(names, frames, strict=True)))
