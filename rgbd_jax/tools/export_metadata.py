"""The metadata of an exported network, in numbers and in words: enough to run the file without this package."""

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rgbd_jax.checkpoint.checkpoints import find, read_metadata
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.data.transforms import draw_transform
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.models.family import Tree
from rgbd_jax.pytorch.weights import is_workdir

OUTPUTS = {
    "probabilities": "class probabilities: softmax of the logits",
    "logits": "logits of the head that decides, divided by the temperature",
}
PACKAGES = ("rgbd_jax", "jax", "jaxlib", "flax", "numpy")
PUBLIC_PROVENANCE = ("started", "versions", "git", "data")  # command and machine name files and hosts

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


def metadata(trained: TrainedModel, checkpoint: str, **file_format: Any) -> dict[str, Any]:
    """Describes a network, exported in a format, without names of folders, hosts and commands; JSON-able.

    Args:
        trained: the network.
        checkpoint: the "best" or the "latest" of a workdir.
        **file_format: the `format` of the file and its details.
    """
    config, modalities, classes = trained.config, trained.model.modalities, list(trained.class_names)
    shape = ["batch", config.clip.frames, config.clip.size, config.clip.size, 3]
    of_inputs = {"dtype": "uint8", "shape": shape, "axes": "batch, frames, height, width, channels"}
    of_outputs = {"dtype": "float32", "shape": ["batch", len(classes)]}
    recorded = read_config(trained.path) if is_workdir(trained.path) else config
    source = {
        "name": trained.path.resolve().name,
        "epoch": trained.epoch,
        "step": trained.step,
        "dataset": config.data.dataset,
        "config_sha256": hashlib.sha256(json.dumps(recorded.to_dict(), sort_keys=True).encode()).hexdigest(),
        "weights_sha256": _weights_hash(trained.params, trained.batch_stats),
    }
    if is_workdir(trained.path):
        provenance = read_metadata(find(trained.path, checkpoint, evaluated=True)).provenance
        public = {name: provenance[name] for name in PUBLIC_PROVENANCE if name in provenance}
        source |= {"checkpoint": checkpoint, "trained": public}
    return {
        "description": "a trained network of rgbd_jax: frames after `preprocessing`, 0 to 255, to class probabilities",
        **file_format,
        "classes": classes,
        "inputs": [{"name": modality, **of_inputs} for modality in modalities],
        "outputs": [{"name": name, **of_outputs, "description": text} for name, text in OUTPUTS.items()],
        "preprocessing": _preprocessing(config, modalities),
        "network": {
            "modality": config.modality,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
            "dtype": config.model.dtype,
            "temperature": float(trained.schedule.temperature),
        },
        "source": source,
        "exported": {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def _preprocessing(config: ConfigDict, modalities: Sequence[str]) -> dict[str, Any]:
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
    return {
        "frames": {"count": config.clip.frames, "rule": FRAMES_RULE},
        "space": {
            "resize": dict(zip(("width", "height"), crop.resize, strict=True)),
            "crop": {"left": crop.left, "top": crop.top, "size": crop.crop_size},
            "size": crop.size,
            "rule": RESIZE_RULE,
        },
        **{modality: of_modality[modality] for modality in modalities},
    }


def _weights_hash(*weights: Tree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
