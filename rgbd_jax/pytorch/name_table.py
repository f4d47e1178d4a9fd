"""The tables that name every weight of this package's networks in the PyTorch reference, with its layout there."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

Tree = Mapping[str, Any]

BRANCH = r"(small|medium|large)"
LAYERS = rf"temporal\.{BRANCH}\.transformer\.layers"
UNIT_LEAVES = {
    "kernel": "conv3d.weight",
    "norm.scale": "bn.weight",
    "norm.bias": "bn.bias",
    "norm.mean": "bn.running_mean",
    "norm.variance": "bn.running_var",
}
INCEPTION_PATHS = {
    "branch0": "b0",
    "branch1_reduce": "b1a",
    "branch1": "b1b",
    "branch2_reduce": "b2a",
    "branch2": "b2b",
    "branch3": "b3b",
}
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "variance": "running_var"}
SHARED = {"unit": UNIT_LEAVES, "path": INCEPTION_PATHS, "leaf": LEAVES}

# Name here (a regular expression) -> name in PyTorch. <unit>, <path> and <leaf> stand for the tables above;
# <block> is the transformer layer, whose weights are stacked along the first axis here.
TRUNK = (
    (r"spatial\.conv_(\w+?)\.<unit>", r"Conv3d_\1.<unit>"),
    (r"spatial\.mixed_(\w+?)\.<path>\.<unit>", r"Mixed_\1.<path>.<unit>"),
    (r"spatial\.frp\.mixture", r"frp_module.rpconv1d.weight"),
    (r"spatial\.projection_norm\.<leaf>", r"LinearMap.0.<leaf>"),
    (r"spatial\.projection\.<leaf>", r"LinearMap.1.<leaf>"),
    (r"temporal\.recoupling\.query\.<leaf>", r"dtn.rcm.q.<leaf>"),
    (r"temporal\.recoupling\.key\.<leaf>", r"dtn.rcm.k.<leaf>"),
    (r"temporal\.recoupling\.frame_hidden\.<leaf>", r"dtn.rcm.project.0.<leaf>"),
    (r"temporal\.recoupling\.frame_output\.<leaf>", r"dtn.rcm.project.2.<leaf>"),
    (r"temporal\.recoupling\.frame_norm\.<leaf>", r"dtn.rcm.project.3.<leaf>"),
    (r"temporal\.recoupling\.spatial\.<leaf>", r"dtn.rcm.linear.<leaf>"),
    (r"temporal\.recoupling\.merge\.<leaf>", r"dtn.rcm.mergefc.1.<leaf>"),
    (r"temporal\.recoupling\.merge_norm\.<leaf>", r"dtn.rcm.mergefc.2.<leaf>"),
    (rf"temporal\.{BRANCH}\.class_token", r"dtn.cls_token_\1"),
    (rf"temporal\.{BRANCH}\.position_embedding", r"dtn.pos_embedding_\1"),
    (rf"temporal\.{BRANCH}\.inception\.<path>\.<unit>", r"dtn.multi_scale_transformers.0.Mixed_\1.<path>.<unit>"),
    (rf"{LAYERS}\.attention_norm\.<leaf>", r"<block>_\1.layers.0.0.norm.<leaf>"),
    (rf"{LAYERS}\.attention\.qkv\.<leaf>", r"<block>_\1.layers.0.0.fn.to_qkv.<leaf>"),
    (rf"{LAYERS}\.attention\.output\.<leaf>", r"<block>_\1.layers.0.0.fn.to_out.0.<leaf>"),
    (rf"{LAYERS}\.mlp_norm\.<leaf>", r"<block>_\1.layers.0.1.norm.<leaf>"),
    (rf"{LAYERS}\.mlp_in\.<leaf>", r"<block>_\1.layers.0.1.fn.fc1.<leaf>"),
    (rf"{LAYERS}\.mlp_out\.<leaf>", r"<block>_\1.layers.0.1.fn.fc2.<leaf>"),
    (rf"head_{BRANCH}\.norm\.<leaf>", r"dtn.mlp_head_\1.0.<leaf>"),
    (rf"head_{BRANCH}\.linear\.<leaf>", r"dtn.mlp_head_\1.1.<leaf>"),
)  # fmt: skip
# The trunks of the fusion network lie under "rgb." and "depth." here, and under these names there.
STREAM_PREFIXES = {"rgb": "Modalit_rgb", "depth": "Modalit_depth"}
FUSION = (
    (r"spatial_fusion\.hidden\.linear\.<leaf>", r"crossFusion.0.<leaf>"),
    (r"spatial_fusion\.hidden\.norm\.<leaf>", r"crossFusion.1.<leaf>"),
    (r"spatial_fusion\.output\.<leaf>", r"crossFusion.3.<leaf>"),
    (r"temporal_fusion\.hidden\.linear\.<leaf>", r"crossFusionT.0.<leaf>"),
    (r"temporal_fusion\.hidden\.norm\.<leaf>", r"crossFusionT.1.<leaf>"),
    (r"temporal_fusion\.output\.<leaf>", r"crossFusionT.3.<leaf>"),
    (r"head_rgb\.norm\.<leaf>", r"classifier1.0.<leaf>"),
    (r"head_rgb\.linear\.<leaf>", r"classifier1.1.<leaf>"),
    (r"head_depth\.norm\.<leaf>", r"classifier2.0.<leaf>"),
    (r"head_depth\.linear\.<leaf>", r"classifier2.1.<leaf>"),
    (r"autoencoder\.encoder_1\.linear\.<leaf>", r"fusion_model.encoder.enconv.0.<leaf>"),
    (r"autoencoder\.encoder_1\.norm\.<leaf>", r"fusion_model.encoder.enconv.1.<leaf>"),
    (r"autoencoder\.encoder_2\.linear\.<leaf>", r"fusion_model.encoder.enconv.3.<leaf>"),
    (r"autoencoder\.encoder_2\.norm\.<leaf>", r"fusion_model.encoder.enconv.4.<leaf>"),
    (r"autoencoder\.encoder_3\.linear\.<leaf>", r"fusion_model.encoder.enconv.6.<leaf>"),
    (r"autoencoder\.encoder_3\.norm\.<leaf>", r"fusion_model.encoder.enconv.7.<leaf>"),
    (r"autoencoder\.encoder_output\.<leaf>", r"fusion_model.encoder.enconv.9.<leaf>"),
    (r"autoencoder\.decoder_1\.linear\.<leaf>", r"fusion_model.decoder.deconv.0.<leaf>"),
    (r"autoencoder\.decoder_1\.norm\.<leaf>", r"fusion_model.decoder.deconv.1.<leaf>"),
    (r"autoencoder\.decoder_2\.linear\.<leaf>", r"fusion_model.decoder.deconv.3.<leaf>"),
    (r"autoencoder\.decoder_2\.norm\.<leaf>", r"fusion_model.decoder.deconv.4.<leaf>"),
    (r"autoencoder\.classifier\.<leaf>", r"fusion_model.efc.<leaf>"),
    (r"modality\.<leaf>", r"fc.<leaf>"),
)  # fmt: skip
# The order in which the reference registers the parts of any module, and so that of its state dict; PyTorch numbers the
# optimizer's state by it. Numbers sort as numbers, before everything else.
ORDER = (
    "fusion_model", "encoder", "decoder", "efc", "fc", "Modalit_rgb", "Modalit_depth", "LinearMap",
    "Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3",
    "Mixed_3b", "Mixed_3c", "Mixed_4b", "Mixed_4c", "Mixed_5b", "Mixed_5c",
    "b0", "b1a", "b1b", "b2a", "b2b", "b3b", "conv3d", "bn",
    "dtn", "pos_embedding_small", "cls_token_small", "pos_embedding_media", "cls_token_media",
    "pos_embedding_large", "cls_token_large", "multi_scale_transformers",
    "transformer_enc_small", "transformer_enc_media", "transformer_enc_large",
    "Mixed_small", "Mixed_media", "Mixed_large", "layers", "norm", "fn", "to_qkv", "to_out", "fc1", "fc2",
    "rcm", "q", "k", "project", "linear", "mergefc", "mlp_head_small", "mlp_head_media", "mlp_head_large",
    "frp_module", "rpconv1d", "crossFusion", "crossFusionT", "classifier1", "classifier2",
    "enconv", "deconv", "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
)  # fmt: skip
_RANK = {part: len(ORDER) + rank for rank, part in enumerate(ORDER)}


def reference_order(name: str) -> tuple[int, ...]:
    """Returns what PyTorch names are to be sorted by to lie in the reference's order."""
    return tuple(int(part) if part.isdigit() else _RANK[part] for part in name.split("."))


class Layout(NamedTuple):
    """How one tensor is laid out here and in PyTorch, as a pair of functions."""

    to_pytorch: Callable[[np.ndarray], np.ndarray]
    from_pytorch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
CONVOLUTION = Layout(lambda x: x.transpose(4, 3, 0, 1, 2), lambda x: x.transpose(2, 3, 4, 1, 0))  # t h w i o, o i t h w
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # i o, o i
POINTWISE = Layout(lambda x: x.T[:, :, None, None], lambda x: x[:, :, 0, 0].T)  # i o, o i 1 1
CLASS_TOKEN = Layout(lambda x: x[None, None], lambda x: x[0, 0])  # c, 1 1 c
POSITION_EMBEDDING = Layout(lambda x: x[None], lambda x: x[0])  # n c, 1 n c
FRP_MIXTURE = Layout(lambda x: x[None, :, None], lambda x: x[0, :, 0])  # 2, 1 2 1


class Entry(NamedTuple):
    """One tensor of the PyTorch state dict and where it lies here (`block`: the slice of a stacked tensor)."""

    pytorch_name: str
    path: tuple[str, ...]
    block: int | None
    layout: Layout


class ConversionError(ValueError):
    """Weights that do not fit the network; the message lists every problem found."""


def entries(*trees: Tree) -> Iterator[Entry]:
    """Yields the table entries of every tensor in the given trees (parameters, batch statistics).

    Raises:
        ConversionError: a tensor's name is not in the table.
    """
    for tree in trees:
        for path, tensor in traverse_util.flatten_dict(tree).items():
            name = _pytorch_name(path)
            if "<block>" not in name:
                yield Entry(name, path, None, _layout(path, np.ndim(tensor)))
                continue
            for block in range(tensor.shape[0]):
                prefix = f"dtn.multi_scale_transformers.{block}.transformer_enc"
                layout = _layout(path, np.ndim(tensor) - 1)
                yield Entry(name.replace("<block>", prefix), path, block, layout)


@functools.cache
def _compiled() -> tuple[list[tuple[re.Pattern, str]], list[tuple[re.Pattern, str]]]:
    """Returns the rows of the trunk and of the fusion network, with the alternatives of <unit>, <path>, <leaf>."""
    tables = []
    for table in (TRUNK, FUSION):
        rows = []
        for pattern, template in table:
            for kind, alternatives in SHARED.items():
                pattern = pattern.replace(f"<{kind}>", f"(?P<{kind}>{'|'.join(map(re.escape, alternatives))})")
            rows.append((re.compile(pattern), template))
        tables.append(rows)
    return tables[0], tables[1]


def _pytorch_name(path: tuple[str, ...]) -> str:
    trunk, fusion = _compiled()
    modality = STREAM_PREFIXES.get(path[0])
    ours = ".".join(path[1:] if modality else path)
    for pattern, template in trunk if modality else trunk + fusion:
        if match := pattern.fullmatch(ours):
            for kind, key in match.groupdict().items():
                template = template.replace(f"<{kind}>", SHARED[kind][key])
            theirs = match.expand(template).replace("_medium", "_media")
            return f"{modality}.{theirs}" if modality else theirs
    raise ConversionError(f"no PyTorch name for the weight {'.'.join(path)}: add it to the tables of {__name__}")


def _layout(path: tuple[str, ...], dimensions: int) -> Layout:
    leaf = path[-1]
    if leaf == "kernel":
        pointwise = path[0] in ("spatial_fusion", "temporal_fusion", "autoencoder", "modality")
        return CONVOLUTION if dimensions == 5 else POINTWISE if pointwise else LINEAR
    return {"class_token": CLASS_TOKEN, "position_embedding": POSITION_EMBEDDING, "mixture": FRP_MIXTURE}.get(
        leaf, SAME
    )
