"""Exports a trained network as one file that runs without this package, on batches of any size.

    python -m rgbd_jax export runs/demo demo.zip
    python -m rgbd_jax export model_best.pth.tar nv.onnx --config configs/nvgesture.py:depth

A .zip holds the network as StableHLO, weights included (`model.jax_export`, for jax and numpy), and `about.json`, its
metadata; an .onnx is for ONNX Runtime, with the same metadata under "about". Frames go in as uint8, normalisation and
heat maps are part of the network; probabilities and logits come out. See docs/export.md.
"""

import argparse
import dataclasses
import importlib.util
import json
import logging
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.model import Model
from rgbd_jax.tools.arguments import add_trained_model, load_trained_model
from rgbd_jax.tools.export_metadata import OUTPUTS, metadata

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OPSET = 23
ONNX_PACKAGES = ("jax2onnx", "onnx", "onnx_ir", "onnxruntime")
TOLERANCE = 1e-3  # larger differences are not rounding

Outputs = tuple[Float[Array, "b k"], Float[Array, "b k"]]

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m rgbd_jax export`."""
    add_trained_model(parser, positional=True)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="file to write: *.onnx is ONNX, any other name StableHLO")
    add("--platforms", nargs="+", choices=PLATFORMS, default=["cpu", "cuda", "tpu"], help="that StableHLO is for")
    add("--no-check", dest="check", action="store_false", help="do not compare the outputs with the model's first")


def run(args: argparse.Namespace) -> None:
    """Exports one network; the last line on stdout is the result as one JSON object."""
    trained = load_trained_model(args)
    result = export(trained, args.out.expanduser(), args.checkpoint, args.platforms, check=args.check)
    print(f"{result['classes']} classes, {result['bytes'] / 1e6:.1f} MB, written to {result['file']}")
    print(json.dumps(result))


def export(
    trained: TrainedModel,
    target: Path,
    checkpoint: str = "best",
    platforms: Sequence[str] = ("cpu",),
    *,
    check: bool = True,
) -> dict[str, Any]:
    """Writes a trained network to `target`, a new file; returns its file, format, bytes, seconds and so on.

    Raises:
        OSError: the file exists or cannot be written.
        ValueError: the exported outputs differ from the model's, or packages are not installed.
    """
    _check_absent(target)
    to_onnx = target.suffix == ".onnx"
    if missing := [name for name in ONNX_PACKAGES if to_onnx and importlib.util.find_spec(name) is None]:
        command = "pip install --no-deps --requirement requirements-onnx.txt"
        raise ValueError(f"{target.name}: the ONNX format needs {', '.join(missing)}, not installed here: {command}")
    log.info("exporting %s (%s, %d classes)", trained.path, trained.config.modality, len(trained.class_names))
    started = time.monotonic()
    file_format: dict[str, Any] = {"format": "stablehlo", "platforms": list(platforms)}
    write, read = _write_stablehlo, _read_stablehlo
    if to_onnx:
        file_format = {"format": "onnx", "opset": OPSET}
        write, read, trained = _write_onnx, _read_onnx, _in_float32(trained)
    result = {"file": str(target), **file_format, "classes": len(trained.class_names)}
    with atomic_write(target) as unfinished:
        write(unfinished, _as_function(trained), metadata(trained, checkpoint, **file_format))
        result |= {"bytes": unfinished.stat().st_size, "seconds": round(time.monotonic() - started, 1)}
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if check and (to_onnx or here in platforms):
            result["largest_difference"] = _check(trained, read(unfinished))
        elif check:
            log.warning("the file is not checked: this machine's %s is not among --platforms", here)
        _check_absent(target)  # another process may have written it meanwhile
    return result


def _check_absent(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: give another name, or remove it")


def _as_function(trained: TrainedModel) -> Callable[..., Outputs]:
    """Returns a function of the frames of each modality, uint8 b t h w 3: probabilities and logits, float32 b k."""
    model = trained.model
    params, batch_stats = jax.tree.map(np.asarray, (trained.params, trained.batch_stats))

    def predict(*frames: UInt8[Array, "b t h w 3"]) -> Outputs:
        inputs = model.inputs({"frames": dict(zip(model.modalities, frames, strict=True))})
        output, _ = model.apply(params, batch_stats, inputs, trained.schedule)
        logits = output.logits.astype(jnp.float32)  # b k
        return jax.nn.softmax(logits, axis=-1), logits

    return predict


def _check(trained: TrainedModel, exported: Callable[..., Outputs]) -> float:
    """Returns the largest difference for random clips, of logits relative to the largest one; fails above TOLERANCE."""
    rng = np.random.default_rng(0)
    clip = trained.config.clip
    shape = (2, clip.frames, clip.size, clip.size, 3)  # b t h w c
    frames = {name: rng.integers(0, 256, shape, np.uint8) for name in trained.model.modalities}
    expected = Predictor(trained, batch_size=2)(frames)
    probabilities, logits = map(np.asarray, exported(*frames.values()))
    right = expected.heads["logits"]
    scale = max(1.0, float(np.abs(right).max()))
    difference = float(max(np.abs(probabilities - expected.probabilities).max(), np.abs(logits - right).max() / scale))
    if not difference <= TOLERANCE:
        found = f"the exported outputs differ from the model's by {difference:.2g}, expected at most {TOLERANCE:g}"
        raise ValueError(f"{found}; nothing is written. Other versions of the exporter's packages may do better")
    log.info("checked against the model: largest difference %.2g", difference)
    return difference


def _write_stablehlo(path: Path, predict: Callable[..., Outputs], about: Mapping[str, Any]) -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *entry["shape"][1:]), jnp.uint8) for entry in about["inputs"]]
    pattern = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, pattern)
    jax.config.update(pattern, ".*/")  # the program's source locations would name folders of this machine
    try:
        exported = jax.export.export(jax.jit(predict), platforms=about["platforms"])(*shapes)
    finally:
        jax.config.update(pattern, before)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:  # weights hardly compress
        file.writestr("about.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        file.writestr("model.jax_export", bytes(exported.serialize()))


def _read_stablehlo(path: Path) -> Callable[..., Outputs]:
    with zipfile.ZipFile(path) as file:
        return jax.jit(jax.export.deserialize(bytearray(file.read("model.jax_export"))).call)


def _in_float32(trained: TrainedModel) -> TrainedModel:
    """Returns the network, computing in float32: few ONNX runtimes compute in bfloat16."""
    if trained.config.model.dtype == "float32":
        return trained
    log.warning("the network computes in %s; the ONNX file will in float32", trained.config.model.dtype)
    config = trained.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    return dataclasses.replace(trained, model=Model(config, trained.model.num_classes))


def _write_onnx(path: Path, predict: Callable[..., Outputs], about: Mapping[str, Any]) -> None:
    for name in ("jax2onnx", "onnx_ir"):  # they report plugins that are not used here, and shapes left symbolic
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import jax2onnx
    import onnx

    shapes: list[Any] = [jax.ShapeDtypeStruct(tuple(entry["shape"]), np.uint8) for entry in about["inputs"]]
    try:
        with warnings.catch_warnings():
            # jax2onnx traces with types that JAX narrows to those of the network.
            warnings.filterwarnings("ignore", "Explicitly requested dtype float64")
            names: dict[str, Any] = {
                "input_names": [entry["name"] for entry in about["inputs"]],
                "output_names": list(OUTPUTS),
            }
            model = jax2onnx.to_onnx(predict, shapes, model_name="rgbd_jax", opset=OPSET, **names)
    except NotImplementedError as error:
        raise ValueError(f"jax2onnx cannot export this network: {error}; export to StableHLO (*.zip)") from error
    onnx.helper.set_model_props(model, {"about": json.dumps(about, ensure_ascii=False)})
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _read_onnx(path: Path) -> Callable[..., Outputs]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; it warns of constants that it folds
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *frames: session.run(list(OUTPUTS), dict(zip(names, frames, strict=True)))
