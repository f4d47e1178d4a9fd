"""Reads from a PyTorch state dict which network it belongs to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rgbd_jax.convert.name_table import STREAM_PREFIXES, ConversionError
from rgbd_jax.models.recoupling import QUERY_FEATURES

BLOCKS = "dtn.multi_scale_transformers."
BRANCHES = ("small", "media", "large")


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
    fusion = any(name.startswith(f"{STREAM_PREFIXES['rgb']}.") for name in shapes)
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


def _trunk_settings(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int | None]:
    _shape(shapes, "Conv3d_1a_7x7.conv3d.weight", 5)
    settings: dict[str, Any] = {
        "branch_frames": tuple(_shape(shapes, f"dtn.pos_embedding_{branch}", 3)[1] - 1 for branch in BRANCHES),
        "temporal_blocks": len({name.split(".")[2] for name in shapes if name.startswith(BLOCKS)}),
        "frp": "frp_module.rpconv1d.weight" in shapes,
        "recoupling": "dtn.rcm.q.weight" in shapes,
    }
    if not settings["recoupling"]:
        return settings, None
    outputs, frames = _shape(shapes, "dtn.rcm.q.weight", 2)
    settings["recoupling_heads"] = outputs // QUERY_FEATURES
    settings["recoupling_hidden"] = _shape(shapes, "dtn.rcm.project.0.weight", 2)[0]
    return settings, frames


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        some = ", ".join(list(shapes)[:5])
        raise ConversionError(f"not a network of the reference: no {name} among {some}, ...")
    if len(shapes[name]) != dimensions:
        raise ConversionError(f"{name} has shape {shapes[name]}; expected {dimensions} axes")
    return shapes[name]
