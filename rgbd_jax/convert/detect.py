"""Reads from a PyTorch state dict which network it belongs to."""

from collections.abc import Mapping
from typing import Any

BLOCK_PREFIX = "dtn.multi_scale_transformers."


def model_settings(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `config.model` (and `frames`) that the tensors of a unimodal network fix.

    Args:
        state_dict: name -> tensor, or anything with a shape; a plain sequence is taken as the shape itself.

    Raises:
        ValueError: the file holds no unimodal network.
    """
    shapes = {name: tuple(getattr(tensor, "shape", tensor)) for name, tensor in state_dict.items()}
    heads = shapes.get("dtn.mlp_head_small.1.weight")
    if heads is None or "Conv3d_1a_7x7.conv3d.weight" not in shapes:
        some = ", ".join(list(shapes)[:5])
        raise ValueError(f"not a unimodal network of the reference: no dtn.mlp_head_small.1.weight among {some}, ...")
    branches = [shapes[f"dtn.pos_embedding_{branch}"][1] - 1 for branch in ("small", "media", "large")]
    settings: dict[str, Any] = {
        "num_classes": heads[0],
        "branch_frames": tuple(branches),
        "temporal_blocks": len({name.split(".")[2] for name in shapes if name.startswith(BLOCK_PREFIX)}),
        "frp": "frp_module.rpconv1d.weight" in shapes,
        "recoupling": "dtn.rcm.q.weight" in shapes,
    }
    if settings["recoupling"]:
        outputs, frames = shapes["dtn.rcm.q.weight"]
        settings |= {
            "frames": frames,
            "recoupling_heads": outputs // 64,
            "recoupling_hidden": shapes["dtn.rcm.project.0.weight"][0],
        }
    return settings
