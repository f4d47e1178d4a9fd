"""What is told beside an exported network, in words and numbers, so that it can be used without this package."""

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import jax

from rgbd_jax.checkpoint.checkpoints import find, read_metadata
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.data import transforms
from rgbd_jax.inference.trained import TrainedNetwork
from rgbd_jax.modalities import STREAMS
from rgbd_jax.pytorch.weights import is_workdir
from rgbd_jax.tools.exporting.function import OUTPUTS, input_shape, weights_digest

FORMAT = 1
PACKAGES = ("rgbd_jax", "jax", "jaxlib", "flax", "numpy")
KEPT_PROVENANCE = ("started", "versions", "git", "data")  # not the command and the machine, which name files and hosts

FRAMES_RULE = (
    "cut the n frames of the clip into `count` intervals, of which interval i begins at frame n * i // count and ends "
    "before frame max(n * i // count + 1, n * (i + 1) // count); take the middle frame of each, of two the earlier: "
    "(begin + end - 1) // 2, counted from 0; all modalities at the same numbers, n being that of the shorter one"
)
RESIZE_RULE = (
    "resize every frame to width x height (antialiased when it becomes smaller, else bilinear), cut the square of "
    "`crop.size` pixels whose upper left corner is at (left, top), and resize that to `size` pixels a side"
)
RGB_RULE = "8 bit, channels in the order red, green, blue"
ENCODING_RULES = {
    "linear": "16-bit depth in millimetres becomes round(1 + 254 * (far - depth) / (far - near)), clipped to 1 .. 255, "
    "with (near, far) = range_mm, and 0 where there is no measurement; 8-bit depth is taken as it is",
    "reference_wrapped": "depth of 8 or 16 bit becomes (-depth) modulo 256",
}
COLOUR_RULES = {
    "jet": "the 8-bit value then becomes three channels by OpenCV's COLORMAP_JET, in OpenCV's order (blue, green, red)",
    "grey": "the 8-bit value is then repeated in all three channels",
}
PERSON_RULE = (
    "before all else a frame of masked single-channel depth is cut to the 320x240 pixels around the person "
    "(rgbd_jax.data.depth.person_box)"
)


def about(trained: TrainedNetwork, which: str, form: str, details: dict[str, Any]) -> dict[str, Any]:
    """Returns what is told of an exported network, JSON-able.

    Args:
        trained: the network.
        which: the "best" or the "latest" checkpoint of a workdir.
        form: "stablehlo" or "onnx".
        details: what is to be told of the file itself.
    """
    config = trained.config
    modalities, shape = STREAMS[config.modality], ("batch", *input_shape(trained))
    classes = len(trained.class_names)
    sizes = [leaf.size for leaf in jax.tree.leaves(trained.params)]
    return {
        "what": "a trained network of rgbd_jax: frames of clips to probabilities of classes",
        "format": FORMAT,
        "kind": form,
        **details,
        "classes": list(trained.class_names),
        "inputs": [
            {
                "name": modality,
                "modality": modality,
                "dtype": "uint8",
                "shape": list(shape),
                "axes": "batch, frames, height, width, channels",
                "values": "frames as `preprocessing` tells, 0 to 255: normalisation and heat maps are in the network",
            }
            for modality in modalities
        ],
        "outputs": [
            {"name": name, "dtype": "float32", "shape": ["batch", classes], "is": said}
            for name, said in zip(
                OUTPUTS, ("probabilities of the classes: softmax of the logits", "logits that decide"), strict=True
            )
        ],
        "preprocessing": _preprocessing(trained, modalities),
        "network": {
            "modality": config.modality,
            "parameters": sum(sizes),
            "computes_in": config.model.dtype,
            "temperature": trained.temperature,  # the logits of one stream are divided by it already
        },
        "source": _source(trained, which),
        "made": {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def _preprocessing(trained: TrainedNetwork, modalities: Sequence[str]) -> dict[str, Any]:
    config = trained.config
    crop = transforms.draw_transform(config, None)
    result: dict[str, Any] = {
        "frames": {"count": config.clip.frames, "rule": FRAMES_RULE},
        "space": {
            "resize": {"width": crop.resize[0], "height": crop.resize[1]},
            "crop": {"left": crop.left, "top": crop.top, "size": crop.crop_size},
            "size": crop.size,
            "rule": RESIZE_RULE,
        },
    }
    if "rgb" in modalities:
        result["rgb"] = {"rule": RGB_RULE}
    if "depth" in modalities:
        depth = config.data.depth
        rules = [ENCODING_RULES[depth.encoding], COLOUR_RULES[depth.colour_map]]
        if depth.reference_person_crop:
            rules.insert(0, PERSON_RULE)
        result["depth"] = {
            "encoding": depth.encoding,
            "range_mm": list(depth.range_mm),
            "colour_map": depth.colour_map,
            "person_crop": depth.reference_person_crop,
            "rule": "; ".join(rules) + "; depth that has three channels already is taken as it is, as " + RGB_RULE,
        }
    return result


def _source(trained: TrainedNetwork, which: str) -> dict[str, Any]:
    """Returns where the weights are from; names of folders and hosts are left out, for the file may go far."""
    of_run = is_workdir(trained.path)
    config = json.dumps((read_config(trained.path) if of_run else trained.config).to_dict(), sort_keys=True)
    source = {
        "name": trained.path.resolve().name,
        "epoch": trained.epoch,
        "step": trained.step,
        "dataset": trained.config.data.dataset,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "weights_sha256": weights_digest(trained),
    }
    if not of_run:
        return source
    metadata = read_metadata(find(trained.path, which, evaluated=True))
    kept = {name: metadata.provenance[name] for name in KEPT_PROVENANCE if name in metadata.provenance}
    return {**source, "checkpoint": which, "trained": kept}
