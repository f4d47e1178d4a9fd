"""Reads from a PyTorch state dict which network it belongs to."""

import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from rgbd_jax.models.attention import HEAD_FEATURES as ATTENTION_HEAD_FEATURES
from rgbd_jax.models.attention import MLP_FEATURES
from rgbd_jax.models.layers import scaled
from rgbd_jax.models.recoupling import QUERY_FEATURES
from rgbd_jax.models.spatial import INCEPTION_CHANNELS
from rgbd_jax.models.unimodal import FEATURES
from rgbd_jax.pytorch.name_table import INCEPTION_PATHS, STREAM_PREFIXES, ConversionError

BLOCKS = "dtn.multi_scale_transformers."
BRANCHES = ("small", "media", "large")
ATTENTION = f"{BLOCKS}0.transformer_enc_small.layers.0.0.fn.to_qkv.weight"
# Tensors whose first axis tells the width, with its length at width 1.
CHANNELS = {
    "Conv3d_1a_7x7.conv3d.weight": 64,
    "Conv3d_2c_3x3.conv3d.weight": 192,
    "LinearMap.1.weight": FEATURES,
    f"{BLOCKS}0.transformer_enc_small.layers.0.1.fn.fc1.weight": MLP_FEATURES,
    **{
        f"{block.capitalize()}.{path}.conv3d.weight": count
        for block, counts in INCEPTION_CHANNELS.items()
        for path, count in zip(INCEPTION_PATHS.values(), counts, strict=True)
    },
}


class DetectedNetwork(NamedTuple):
    """What the tensors of a network say of it.

    Attributes:
        fusion: whether it is the fusion network of both modalities.
        model: fields of `config.model` that the tensors fix.
        frames: `config.clip.frames`; None without recoupling, which alone knows it.
    """

    fusion: bool
    model: Mapping[str, Any]
    frames: int | None


def detect_network(state_dict: Mapping[str, Any]) -> DetectedNetwork:
    """Returns which network a state dict is of.

    Args:
        state_dict: name -> tensor, or anything with a shape; a plain sequence is taken as the shape itself.

    Raises:
        ConversionError: the tensors are of neither network of the reference, or contradict each other; names each.
    """
    shapes = {name: tuple(getattr(tensor, "shape", tensor)) for name, tensor in state_dict.items()}
    fusion = is_fusion(shapes)
    head = "classifier1.1.weight" if fusion else "dtn.mlp_head_small.1.weight"
    if not fusion:
        model, frames = _trunk_settings(shapes)
    else:
        (model, frames), *others = [
            _trunk_settings(
                {name.removeprefix(f"{part}."): s for name, s in shapes.items() if name.startswith(f"{part}.")}
            )
            for part in STREAM_PREFIXES.values()
        ]
        if others != [(model, frames)]:
            raise ConversionError(f"the two streams are different networks: {(model, frames)} and {others[0]}")
    classes = _shape(shapes, head, 2)[0]
    return DetectedNetwork(fusion, {"num_classes": classes, **model}, frames)


def is_fusion(state_dict: Mapping[str, Any]) -> bool:
    """Returns whether a state dict is of a network of both modalities."""
    return any(name.startswith(f"{STREAM_PREFIXES['rgb']}.") for name in state_dict)


def same_width(one: float, other: float) -> bool:
    """Returns whether networks of two widths have the same channels, as widths close to each other do."""
    return all(scaled(channels, one) == scaled(channels, other) for channels in CHANNELS.values())


def _trunk_settings(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int | None]:
    _shape(shapes, "Conv3d_1a_7x7.conv3d.weight", 5)
    width = _width(shapes)
    settings: dict[str, Any] = {
        "width": width,
        "branch_frames": tuple(_shape(shapes, f"dtn.pos_embedding_{branch}", 3)[1] - 1 for branch in BRANCHES),
        "temporal_blocks": len({name.split(".")[2] for name in shapes if name.startswith(BLOCKS)}),
        "attention_heads": _shape(shapes, ATTENTION, 2)[0] // (3 * scaled(ATTENTION_HEAD_FEATURES, width)),
        "frp": "frp_module.rpconv1d.weight" in shapes,
        "recoupling": "dtn.rcm.q.weight" in shapes,
    }
    if not settings["recoupling"]:
        return settings, None
    outputs, frames = _shape(shapes, "dtn.rcm.q.weight", 2)
    settings["recoupling_heads"] = outputs // QUERY_FEATURES
    settings["recoupling_hidden"] = _shape(shapes, "dtn.rcm.project.0.weight", 2)[0]
    return settings, frames


def _width(shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Returns the width with which most channel counts agree, so that one misshapen tensor is seen as such.

    Channels are rounded, so that a range of widths gives the same network; the plainest fraction of it is returned.
    """
    found = [(shapes[name][0], channels) for name, channels in CHANNELS.items() if shapes.get(name)]

    def agreeing(width: float | Fraction) -> int:
        return sum(scaled(channels, float(width)) == count for count, channels in found)

    # Between two of these widths no channel count changes; on one of them a half may be rounded to either side.
    changes = sorted({Fraction(count + step, channels) for count, channels in found for step in (-2, 2)})
    ranges = [*itertools.pairwise(changes), *((width, width) for width in changes)]
    low, high = max((bounds for bounds in ranges if bounds[1] > 0), key=lambda bounds: agreeing(sum(bounds) / 2))
    most = agreeing((low + high) / 2)
    if agreeing(1) >= most:
        return 1.0
    nearest = (Fraction(round((low + high) / 2 * parts), parts) for parts in itertools.count(1))
    return float(next(width for width in nearest if low <= width <= high and agreeing(width) >= most))


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        some = ", ".join(list(shapes)[:5])
        raise ConversionError(f"not a network of the reference: no {name} among {some}, ...")
    if len(shapes[name]) != dimensions:
        raise ConversionError(f"{name} has shape {shapes[name]}; expected {dimensions} axes")
    return shapes[name]
