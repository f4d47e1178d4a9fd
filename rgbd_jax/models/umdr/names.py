"""UMDR, one modality and fusion: its weights' names in PyTorch (MotionRGBD-PAMI)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rgbd_jax.models.attention import HEAD_FEATURES, MLP_FEATURES
from rgbd_jax.models.layers import scaled
from rgbd_jax.models.name_table import ConversionError, DetectedNetwork, NameTable
from rgbd_jax.models.pytorch_names import LAYOUTS, WORDS, Shapes, shape_of, width_of
from rgbd_jax.models.spatial import INCEPTION_CHANNELS
from rgbd_jax.models.temporal import BRANCHES
from rgbd_jax.models.unimodal import FEATURES

UMDR_WORDS = WORDS | {
    "branch": {name: str(number) for number, name in enumerate(BRANCHES)},
    "conv": {"conv_1a_7x7": "0", "conv_2b_1x1": "2", "conv_2c_3x3": "3"},
    "mixed": {
        name: f"{layer}.Mixed{1 + number % 2}"
        for number, (name, layer) in enumerate(zip(INCEPTION_CHANNELS, (0, 0, 2, 2, 4, 4), strict=True))
    },
    "rcm": {"recoupling_1": "1", "recoupling_2": "3", "recoupling_3": "6"},
    "recoupling": {ours: theirs.replace("project", "TM_project") for ours, theirs in WORDS["recoupling"].items()},
}
BRANCH = "dtn.multi_scale_transformers.<branch>"
BLOCK = f"{BRANCH}.2.layers.<block>"
UMDR_ROWS = (
    ("spatial.<conv>.<unit>", "stem.<conv>.<unit>"),
    ("spatial.<mixed>.<path>.<unit>", "SMS_layers.<mixed>.<path>.<unit>"),
    ("spatial.<rcm>.<recoupling>.<linear>", "SMS_layers.<rcm>.<recoupling>.<linear>"),
    ("spatial.<rcm>.frame_norm.<norm>", "SMS_layers.<rcm>.TM_project.3.<norm>"),
    ("spatial.projection_norm.<norm>", "LinearMap.1.<norm>"),
    ("spatial.projection.<linear>", "LinearMap.2.<linear>"),
    ("temporal.<branch>.class_token", "dtn.cls_tokens.<branch>.cls_token"),
    ("temporal.<branch>.position_embedding", "dtn.cls_tokens.<branch>.pos_embedding"),
    ("temporal.<branch>.inception.<path>.<unit>", f"{BRANCH}.0.<path>.<unit>"),
    ("temporal.<branch>.transformer.layers.<layer_norm>.<norm>", f"{BLOCK}.<layer_norm>.<norm>"),
    ("temporal.<branch>.transformer.layers.<layer>.<linear>", f"{BLOCK}.<layer>.<linear>"),
    ("head_<branch>.norm.<norm>", f"{BRANCH}.3.0.<norm>"),
    ("head_<branch>.linear.<linear>", f"{BRANCH}.3.2.<linear>"),
)
HEADS = r"dtn\.multi_scale_transformers\.\d\.3"
PARTS = {
    r"SMS_layers\.[136]\..*": "recoupling",
    r"(?:stem|SMS_layers|LinearMap)\..*": "spatial network",
    rf"{HEADS}\..*": "class heads",
    r".*": "temporal branches",
}
# Tensors whose first axis follows the width, with its length at width 1.
CHANNELS = {
    "LinearMap.2.weight": FEATURES,
    "dtn.multi_scale_transformers.0.2.layers.0.1.fn.fc1.weight": MLP_FEATURES,
    **{
        f"SMS_layers.{UMDR_WORDS['mixed'][block]}.{path}.conv3d.weight": count
        for block, counts in INCEPTION_CHANNELS.items()
        for path, count in zip(WORDS["path"].values(), counts, strict=True)
    },
}


# A part of the fusion here, and in PyTorch.
SPATIAL, TEMPORAL, CLIP = "spatial_fusion", "temporal_fusion", "clip_enhancement"
SPATIAL_BLOCK, TEMPORAL_BLOCK = "SCC_Module.att_nets.<block>", "TimesFormer.att_nets.<block>"
ENHANCEMENTS = ((f"{SPATIAL}.blocks.enhancement", f"{SPATIAL_BLOCK}.0"), (CLIP, "temp_enhance_module"))
DIRECTIONS = (
    (f"{SPATIAL}.blocks.<second>", f"{SPATIAL_BLOCK}.<second>"),
    (f"{TEMPORAL}.blocks.<first>", f"{TEMPORAL_BLOCK}.<first>"),
)
GATES = {"rgb_hidden": "mlp_rgb.0", "rgb_gate": "mlp_rgb.2", "depth_hidden": "mlp_depth.0", "depth_gate": "mlp_depth.2"}
MODALITIES_OF = {
    "first": {"rgb": "0", "depth": "1"},
    "second": {"rgb": "1", "depth": "2"},
    "positions": {"rgb": "pos_embedding_M", "depth": "pos_embedding_K"},
    "classifier": {"rgb": "classifier1", "depth": "classifier2"},
    "tokens": {"rgb": "norm1", "depth": "norm2"},
}
TRUNKS = tuple((f"<modality>.{ours}", f"<modality>.{theirs}") for ours, theirs in UMDR_ROWS)
# The first appearance of each part of a name is its rank in PyTorch's order (`NameTable.in_order`): "norm" comes late.
FUSION_ROWS = (
    TRUNKS[0],
    ("tokens_<positions>.position_embedding", "<positions>"),
    *(
        (f"{ours}.{gate}.<linear>", f"{theirs}.{GATES[gate]}.<linear>")
        for ours, theirs in ENHANCEMENTS
        for gate in GATES
    ),
    *(
        (f"{ours}.{name}.<linear>", f"{theirs}.{name[0]}.<linear>")
        for ours, theirs in DIRECTIONS
        for name in ("query", "key", "value")
    ),
    *((f"{ours}.norm.<norm>", f"{theirs}.norm.<norm>") for ours, theirs in ENHANCEMENTS),
    *(
        (f"{ours}.{name}", f"{theirs}.{name_there}")
        for ours, theirs in DIRECTIONS
        for name, name_there in (
            ("attention_norm.<norm>", "norm.<norm>"),
            ("mlp_norm.<norm>", "ffn.norm.<norm>"),
            ("mlp_in.<linear>", "ffn.fn.fc1.<linear>"),
            ("mlp_out.<linear>", "ffn.fn.fc2.<linear>"),
        )
    ),
    (f"{SPATIAL}.norm.<norm>", "SCC_Module.norm.<norm>"),
    (f"{TEMPORAL}.norm.<norm>", "TimesFormer.norm.<norm>"),
    ("classifier_<classifier>.<linear>", "<classifier>.<linear>"),
    ("tokens_<tokens>.norm.<norm>", "<tokens>.<norm>"),
    *TRUNKS[1:],
)


def family(names: Iterable[str]) -> str | None:
    """Returns "umdr" or "umdr_fusion" by the names of a state dict; None if it is of another program."""
    known, found = {"SCC_Module.norm.weight": "umdr_fusion", "stem.0.conv3d.weight": "umdr"}, set(names)
    return next((kind for name, kind in known.items() if name in found), None)


def detect(shapes: Shapes, preferred: Mapping[str, Any]) -> DetectedNetwork:
    """See `NameTable.detect`."""
    width = width_of(shapes, CHANNELS, preferred.get("width", 1.0))
    first = "dtn.multi_scale_transformers.0"
    queries, _ = shape_of(shapes, f"{first}.2.layers.0.0.fn.to_qkv.weight", 2)
    model: dict[str, Any] = {
        "num_classes": shape_of(shapes, f"{first}.3.2.weight", 2)[0],
        "width": width,
        "branch_frames": tuple(
            shape_of(shapes, f"dtn.cls_tokens.{branch}.pos_embedding", 3)[1] - 1 for branch in range(len(BRANCHES))
        ),
        "temporal_blocks": len({name.split(".")[5] for name in shapes if name.startswith(f"{first}.2.layers.")}),
        "attention_heads": queries // (3 * scaled(HEAD_FEATURES, width)),
        "frp": False,
    }
    return DetectedNetwork("umdr", model, shape_of(shapes, "SMS_layers.1.q.weight", 2)[1])


def detect_fusion(shapes: Shapes, preferred: Mapping[str, Any]) -> DetectedNetwork:
    """See `NameTable.detect`; the frozen RGB network is looked at."""
    prefix = f"{UMDR_WORDS['modality']['rgb']}."
    trunk = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    if not trunk:
        raise ConversionError(
            "the fusion part alone, as the reference saves it, without the frozen networks: put them together by "
            "`rgbd convert IN OUT --rgb RGB --depth DEPTH`"
        )
    blocks = {
        field: len({name.split(".")[2] for name in shapes if name.startswith(part)})
        for field, part in (("spatial_blocks", "SCC_Module.att_nets."), ("temporal_blocks", "TimesFormer.att_nets."))
    }
    network = detect(trunk, preferred)
    return network._replace(family="umdr_fusion", fusion=blocks)


UMDR_NAMES = NameTable(
    rows=UMDR_ROWS,
    words=UMDR_WORDS,
    layouts=LAYOUTS,
    class_heads=re.compile(rf"{HEADS}\.2\.(weight|bias)"),
    parts=PARTS,
    family=family,
    detect=detect,
)
UMDR_FUSION_NAMES = NameTable(
    rows=FUSION_ROWS,
    words=UMDR_WORDS | MODALITIES_OF,
    layouts=LAYOUTS,
    class_heads=re.compile(r"classifier[12]\.(weight|bias)"),
    parts={
        **{rf"Modalit_(rgb|depth)\.(?:{pattern})": rf"\1 {part}" for pattern, part in PARTS.items()},
        r"classifier.*": "class heads",
        r".*": "fusion",
    },
    family=family,
    detect=detect_fusion,
)
