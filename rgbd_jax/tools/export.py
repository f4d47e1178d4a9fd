"""Exports a trained network as one file that runs without this package, on batches of any size.

    python -m rgbd_jax export runs/demo demo.zip
    python -m rgbd_jax export model_best.pth.tar nv.onnx --config configs/nvgesture.py:depth

A .zip holds the network as StableHLO, weights included (`model.jax_export`, for jax and numpy), and `about.json`, its
metadata; an .onnx is for ONNX Runtime, with the same metadata under "about". Frames go in as uint8, normalisation and
heat maps are part of the network; probabilities and logits come out. See docs/export.md.
"""

import argparse
import dataclasses
import datetime
import hashlib
import importlib.metadata
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
from rgbd_jax.checkpoint.checkpoints import find, read_metadata
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.data.transforms import draw_transform
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.model import Model
from rgbd_jax.pytorch.weights import is_workdir
from rgbd_jax.storage import disk_path
from rgbd_jax.tools.arguments import add_trained_model, load_trained_model

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OPSET = 23
ONNX_PACKAGES = ("jax2onnx", "onnx", "onnx_ir", "onnxruntime")
TOLERANCE = 1e-3  # larger differences are not rounding
PACKAGES = ("rgbd_jax", "jax", "jaxlib", "flax", "numpy")
PUBLIC_PROVENANCE = ("started", "versions", "git", "data")  # command and machine name files and hosts

OUTPUTS = {
    "probabilities": "class probabilities: softmax of the logits",
    "logits": "logits of the head that decides, divided by the temperature",
}
FRAMES_RULE = (
    "cut the n frames of the clip into `count` intervals, of which interval i begins at frame n * i // count and ends "
    "before frame max(n * i // count + 1, n * (i + 1) // count); take frame (begin + end - 1) // 2 of each, counted "
    "from 0; all modalities at the same numbers, n being that of the shorter one"
)
RESIZE_RULE = (
    "resize every frame to width x height (antialiased when it becomes smaller, else bilinear), cut the square of "
    "`crop.size` pixels whose upper left corner is at (left, top), and resize that to `size` pixels a side"
)
RGB_RULE = "8 bit, channels in the order red, green, blue"
DEPTH_RULES = {
    "person": "masked depth is first cut to 320x240 pixels around the person (rgbd_jax.data.frames.person_box)",
    "linear": "16-bit depth in millimetres becomes round(1 + 254 * (far - depth) / (far - near)), clipped to 1 .. 255, "
    "with (near, far) = range_mm, and 0 where there is no measurement; 8-bit depth is taken as it is",
    "reference_wrapped": "depth of 8 or 16 bit becomes (-depth) modulo 256",
    "jet": "the 8-bit value becomes three channels by OpenCV's COLORMAP_JET, in OpenCV's order (blue, green, red)",
    "grey": "the 8-bit value is repeated in all three channels",
    "coloured": f"depth that has three channels already is taken as it is, as {RGB_RULE}",
}

Outputs = tuple[Float[Array, "b k"], Float[Array, "b k"]]  # probabilities and logits
Network = Callable[..., Outputs]  # of uint8 frames of each modality, b t h w 3

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m rgbd_jax export`."""
    add_trained_model(parser, positional=True)
    add = parser.add_argument
    add("out", type=disk_path, metavar="OUT", help="file to write: *.onnx is ONNX, any other name StableHLO")
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
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists already: give another name, or remove it")
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
        write(unfinished, _network(trained), file_format | metadata(trained, checkpoint))
        result |= {"bytes": unfinished.stat().st_size, "seconds": round(time.monotonic() - started, 1)}
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if check and (to_onnx or here in platforms):
            result["largest_difference"] = _check(trained, read(unfinished))
        elif check:
            log.warning("the file is not checked: this machine's %s is not among --platforms", here)
    return result


def metadata(trained: TrainedModel, checkpoint: str) -> dict[str, Any]:
    """Describes a network, in numbers and in words, without names of folders, hosts and commands; JSON-able."""
    config, modalities, classes = trained.config, trained.model.modalities, list(trained.class_names)
    shape = ["batch", config.clip.frames, config.clip.size, config.clip.size, 3]
    of_inputs = {"dtype": "uint8", "shape": shape, "axes": "batch, frames, height, width, channels"}
    of_outputs = {"dtype": "float32", "shape": ["batch", len(classes)]}
    crop, depth = draw_transform(config, None), config.data.depth
    rules = ("person",) * depth.reference_person_crop + (depth.encoding, depth.colour_map, "coloured")
    of_modality: dict[str, dict[str, Any]] = {
        "rgb": {"rule": RGB_RULE},
        "depth": {
            "encoding": depth.encoding,
            "range_mm": list(depth.range_mm),
            "colour_map": depth.colour_map,
            "person_crop": depth.reference_person_crop,
            "rule": "; ".join(DEPTH_RULES[name] for name in rules),
        },
    }
    recorded, of_run = config, {}
    if is_workdir(trained.path):
        provenance = read_metadata(find(trained.path, checkpoint, evaluated=True)).provenance
        public = {name: provenance[name] for name in PUBLIC_PROVENANCE if name in provenance}
        recorded, of_run = read_config(trained.path), {"checkpoint": checkpoint, "trained": public}
    return {
        "description": "a trained network of rgbd_jax: frames after `preprocessing`, 0 to 255, to class probabilities",
        "classes": classes,
        "inputs": [{"name": modality, **of_inputs} for modality in modalities],
        "outputs": [{"name": name, **of_outputs, "description": text} for name, text in OUTPUTS.items()],
        "preprocessing": {
            "frames": {"count": config.clip.frames, "rule": FRAMES_RULE},
            "space": {
                "resize": dict(zip(("width", "height"), crop.resize, strict=True)),
                "crop": {"left": crop.left, "top": crop.top, "size": crop.crop_size},
                "size": crop.size,
                "rule": RESIZE_RULE,
            },
            **{modality: of_modality[modality] for modality in modalities},
        },
        "network": {
            "modality": config.modality,
            "parameters": trained.model.num_parameters,
            "dtype": config.model.dtype,
            "temperature": float(trained.schedule.temperature),
        },
        "source": {
            "name": trained.path.resolve().name,
            "epoch": trained.epoch,
            "step": trained.step,
            "dataset": config.data.dataset,
            "config_sha256": hashlib.sha256(json.dumps(recorded.to_dict(), sort_keys=True).encode()).hexdigest(),
            "weights_sha256": _weights_hash(trained),
            **of_run,
        },
        "exported": {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def _weights_hash(trained: TrainedModel) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path((trained.params, trained.batch_stats)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _network(trained: TrainedModel) -> Network:
    model = trained.model
    params, batch_stats = jax.tree.map(np.asarray, (trained.params, trained.batch_stats))

    def predict(*frames: UInt8[Array, "b t h w 3"]) -> Outputs:
        inputs = model.inputs({"frames": dict(zip(model.modalities, frames, strict=True))})
        output, _ = model.apply(params, batch_stats, inputs, trained.schedule)
        logits = output.logits.astype(jnp.float32)  # b k
        return jax.nn.softmax(logits, axis=-1), logits

    return predict


def _check(trained: TrainedModel, exported: Network) -> float:
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


def _write_stablehlo(path: Path, predict: Network, about: Mapping[str, Any]) -> None:
    # The program's source locations would name folders of this machine.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *entry["shape"][1:]), jnp.uint8) for entry in about["inputs"]]
    exported = jax.export.export(jax.jit(predict), platforms=about["platforms"])(*shapes)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:  # weights hardly compress
        file.writestr("about.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        file.writestr("model.jax_export", bytes(exported.serialize()))


def _read_stablehlo(path: Path) -> Network:
    with zipfile.ZipFile(path) as file:
        return jax.jit(jax.export.deserialize(bytearray(file.read("model.jax_export"))).call)


def _in_float32(trained: TrainedModel) -> TrainedModel:
    """Returns the network, computing in float32: few ONNX runtimes compute in bfloat16."""
    config = trained.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    if config != trained.config:
        log.warning("the network computes in %s; the ONNX file will in float32", trained.config.model.dtype)
    return dataclasses.replace(trained, model=Model(config, trained.model.num_classes))


def _write_onnx(path: Path, predict: Network, about: Mapping[str, Any]) -> None:
    for name in ("jax2onnx", "onnx_ir"):  # they report plugins that are not used here, and shapes left symbolic
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # jax2onnx traces with types that JAX narrows to those of the network.
    warnings.filterwarnings("ignore", "Explicitly requested dtype float64")
    import jax2onnx
    import onnx

    shapes: list[Any] = [jax.ShapeDtypeStruct(tuple(entry["shape"]), np.uint8) for entry in about["inputs"]]
    names: dict[str, Any] = {
        "input_names": [entry["name"] for entry in about["inputs"]],
        "output_names": list(OUTPUTS),
    }
    try:
        model = jax2onnx.to_onnx(predict, shapes, model_name="rgbd_jax", opset=OPSET, **names)
    except NotImplementedError as error:
        raise ValueError(f"jax2onnx cannot export this network: {error}; export to StableHLO (*.zip)") from error
    onnx.helper.set_model_props(model, {"about": json.dumps(about, ensure_ascii=False)})
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _read_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; it warns of constants that it folds
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *frames: session.run(list(OUTPUTS), dict(zip(names, frames, strict=True)))
