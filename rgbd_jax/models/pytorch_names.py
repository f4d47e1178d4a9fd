"""The decoupled-and-recoupled network (MotionRGBD, CVPR 2022), one stream and fusion: its weights' names in PyTorch."""

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from rgbd_jax.models.attention import HEAD_FEATURES, MLP_FEATURES
from rgbd_jax.models.layers import scaled
from rgbd_jax.models.name_table import ConversionError, DetectedNetwork, NameTable
from rgbd_jax.models.recoupling import QUERY_FEATURES
from rgbd_jax.models.spatial import INCEPTION_CHANNELS
from rgbd_jax.models.unimodal import FEATURES

NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
WORDS = {
    "branch": {"small": "small", "medium": "media", "large": "large"},
    "modality": {"rgb": "Modalit_rgb", "depth": "Modalit_depth"},
    "conv": {"conv_1a_7x7": "Conv3d_1a_7x7", "conv_2b_1x1": "Conv3d_2b_1x1", "conv_2c_3x3": "Conv3d_2c_3x3"},
    "mixed": {name: name.capitalize() for name in INCEPTION_CHANNELS},
    "path": {
        "branch0": "b0",
        "branch1_reduce": "b1a",
        "branch1": "b1b",
        "branch2_reduce": "b2a",
        "branch2": "b2b",
        "branch3": "b3b",
    },
    "unit": {"kernel": "conv3d.weight"} | {f"norm.{ours}": f"bn.{theirs}" for ours, theirs in NORM.items()},
    "norm": NORM,
    "linear": {"kernel": "weight", "bias": "bias"},
    "conv1x1": {"kernel": "weight", "bias": "bias"},  # a linear map here, a convolution of one pixel in PyTorch
    "layer_norm": {"attention_norm": "0.norm", "mlp_norm": "1.norm"},  # of the transformers
    "layer": {
        "attention.qkv": "0.fn.to_qkv",
        "attention.output": "0.fn.to_out.0",
        "mlp_in": "1.fn.fc1",
        "mlp_out": "1.fn.fc2",
    },
    "recoupling": {
        "query": "q",
        "key": "k",
        "frame_hidden": "project.0",
        "frame_output": "project.2",
        "spatial": "linear",
    },
}
LAYOUTS = {
    "unit.kernel": "t h w i o -> o i t h w",
    "linear.kernel": "i o -> o i",
    "conv1x1.kernel": "i o -> o i 1 1",
    "class_token": "c -> 1 1 c",
    "position_embedding": "n c -> 1 n c",
    "mixture": "n -> 1 n 1",
}
BLOCK = "dtn.multi_scale_transformers.<block>.transformer_enc_<branch>.layers.0"
TRUNK = (
    ("spatial.projection_norm.<norm>", "LinearMap.0.<norm>"),
    ("spatial.projection.<linear>", "LinearMap.1.<linear>"),
    ("spatial.<conv>.<unit>", "<conv>.<unit>"),
    ("spatial.<mixed>.<path>.<unit>", "<mixed>.<path>.<unit>"),
    *(
        (f"temporal.{ours}.{kind}", f"dtn.{prefix}_{theirs}")
        for ours, theirs in WORDS["branch"].items()
        for kind, prefix in (("position_embedding", "pos_embedding"), ("class_token", "cls_token"))
    ),
    ("temporal.<branch>.transformer.layers.<layer_norm>.<norm>", f"{BLOCK}.<layer_norm>.<norm>"),
    ("temporal.<branch>.transformer.layers.<layer>.<linear>", f"{BLOCK}.<layer>.<linear>"),
    ("temporal.<branch>.inception.<path>.<unit>", "dtn.multi_scale_transformers.0.Mixed_<branch>.<path>.<unit>"),
    ("temporal.recoupling.<recoupling>.<linear>", "dtn.rcm.<recoupling>.<linear>"),
    ("temporal.recoupling.frame_norm.<norm>", "dtn.rcm.project.3.<norm>"),
    ("temporal.recoupling.merge.<linear>", "dtn.rcm.mergefc.1.<linear>"),
    ("temporal.recoupling.merge_norm.<norm>", "dtn.rcm.mergefc.2.<norm>"),
    ("head_<branch>.norm.<norm>", "dtn.mlp_head_<branch>.0.<norm>"),
    ("head_<branch>.linear.<linear>", "dtn.mlp_head_<branch>.1.<linear>"),
    ("spatial.frp.mixture", "frp_module.rpconv1d.weight"),
)


def _dense(ours: str, theirs: str, first: int) -> tuple[tuple[str, str], ...]:
    """A linear map with BatchNorm, two modules of a sequence in PyTorch."""
    return (
        (f"{ours}.linear.<conv1x1>", f"{theirs}.{first}.<conv1x1>"),
        (f"{ours}.norm.<norm>", f"{theirs}.{first + 1}.<norm>"),
    )


ROWS = (
    *_dense("autoencoder.encoder_1", "fusion_model.encoder.enconv", 0),
    *_dense("autoencoder.encoder_2", "fusion_model.encoder.enconv", 3),
    *_dense("autoencoder.encoder_3", "fusion_model.encoder.enconv", 6),
    ("autoencoder.encoder_output.<conv1x1>", "fusion_model.encoder.enconv.9.<conv1x1>"),
    *_dense("autoencoder.decoder_1", "fusion_model.decoder.deconv", 0),
    *_dense("autoencoder.decoder_2", "fusion_model.decoder.deconv", 3),
    ("autoencoder.classifier.<conv1x1>", "fusion_model.efc.<conv1x1>"),
    ("modality.<conv1x1>", "fc.<conv1x1>"),
    *((f"<modality>.{ours}", f"<modality>.{theirs}") for ours, theirs in TRUNK),
    *_dense("spatial_fusion.hidden", "crossFusion", 0),
    ("spatial_fusion.output.<conv1x1>", "crossFusion.3.<conv1x1>"),
    *_dense("temporal_fusion.hidden", "crossFusionT", 0),
    ("temporal_fusion.output.<conv1x1>", "crossFusionT.3.<conv1x1>"),
    ("head_rgb.norm.<norm>", "classifier1.0.<norm>"),
    ("head_rgb.linear.<linear>", "classifier1.1.<linear>"),
    ("head_depth.norm.<norm>", "classifier2.0.<norm>"),
    ("head_depth.linear.<linear>", "classifier2.1.<linear>"),
    *TRUNK,
)
MODALITY = r"(?:Modalit_(rgb|depth)\.)?"
PARTS = {
    rf"{MODALITY}(?:Conv3d_|Mixed_|LinearMap|frp_module).*": r"\1 spatial network",
    rf"{MODALITY}dtn\.rcm\..*": r"\1 recoupling",
    rf"{MODALITY}dtn\.mlp_head.*|classifier.*": r"\1 class heads",
    rf"{MODALITY}dtn\..*": r"\1 temporal branches",
    r".*": "fusion",
}

# Tensors whose first axis follows the width, with its length at width 1.
CHANNELS = {
    "LinearMap.1.weight": FEATURES,
    "dtn.multi_scale_transformers.0.transformer_enc_small.layers.0.1.fn.fc1.weight": MLP_FEATURES,
    **{
        f"{block.capitalize()}.{path}.conv3d.weight": count
        for block, counts in INCEPTION_CHANNELS.items()
        for path, count in zip(WORDS["path"].values(), counts, strict=True)
    },
}
Shapes = Mapping[str, tuple[int, ...]]


def family(names: Iterable[str]) -> str | None:
    """Returns "fusion" or "unimodal" by the names of a state dict; None if it is of another program."""
    names = list(names)
    if any(name.startswith("Modalit_rgb.") for name in names):
        return None if any(name.startswith("Modalit_rgb.stem.") for name in names) else "fusion"  # of UMDR
    return "unimodal" if any(name.endswith("Conv3d_1a_7x7.conv3d.weight") for name in names) else None


def detect(shapes: Shapes, preferred: Mapping[str, Any]) -> DetectedNetwork:
    """See `NameTable.detect`; of a fusion network the RGB stream is looked at."""
    found = family(shapes) or ""
    stream, head = ("Modalit_rgb.", "classifier1") if found == "fusion" else ("", "dtn.mlp_head_small")
    classes = shape_of(shapes, f"{head}.1.weight", 2)[0]
    shapes = {name.removeprefix(stream): shape for name, shape in shapes.items() if name.startswith(stream)}
    branches, transformers = WORDS["branch"].values(), "dtn.multi_scale_transformers."
    queries, _ = shape_of(shapes, f"{transformers}0.transformer_enc_small.layers.0.0.fn.to_qkv.weight", 2)
    width = width_of(shapes, CHANNELS, preferred.get("width", 1.0))
    model: dict[str, Any] = {
        "num_classes": classes,
        "width": width,
        "branch_frames": tuple(shape_of(shapes, f"dtn.pos_embedding_{branch}", 3)[1] - 1 for branch in branches),
        "temporal_blocks": len({name.split(".")[2] for name in shapes if name.startswith(transformers)}),
        "attention_heads": queries // (3 * scaled(HEAD_FEATURES, width)),
        "frp": "frp_module.rpconv1d.weight" in shapes,
        "recoupling": any(name.startswith("dtn.rcm.") for name in shapes),
    }
    frames = None
    if model["recoupling"]:
        outputs, frames = shape_of(shapes, "dtn.rcm.q.weight", 2)
        model["recoupling_heads"] = outputs // QUERY_FEATURES
        model["recoupling_hidden"] = shape_of(shapes, "dtn.rcm.project.0.weight", 2)[0]
    return DetectedNetwork(found, model, frames)


def width_of(shapes: Shapes, channels: Mapping[str, int], preferred: float) -> float:
    """Returns the width with which most channel counts agree, so that one misshapen tensor is seen as such.

    `channels` are those at width 1 of tensors whose first axis follows the width.

    Channels are rounded, so that a range of widths gives the same network: the preferred one of it is returned, else 1,
    else the plainest fraction.
    """
    found = [(shapes[name][0], count) for name, count in channels.items() if shapes.get(name)]
    exact = {Fraction(count + step, whole) for count, whole in found for step in (-1, 0, 1)}
    fractions = exact | {width.limit_denominator(most) for width in exact for most in range(1, 101)}
    plainest = sorted(fractions, key=lambda width: (width.denominator, width))

    def agreeing(width: float) -> int:
        return sum(scaled(whole, width) == count for count, whole in found)

    return max((preferred, 1.0, *map(float, plainest)), key=agreeing)


def shape_of(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """Returns the shape of a tensor, which a whole network has with so many axes."""
    if len(shapes.get(name, ())) != dimensions:
        found = f"has shape {shapes[name]}; expected {dimensions} axes" if name in shapes else "is missing"
        raise ConversionError(f"not a whole network: {name} {found}")
    return shapes[name]


DECOUPLED = NameTable(
    rows=ROWS,
    words=WORDS,
    layouts=LAYOUTS,
    class_heads=re.compile(r"dtn\.mlp_head_(small|media|large)\.1\.(weight|bias)"),
    parts=PARTS,
    family=family,
    detect=detect,
)
