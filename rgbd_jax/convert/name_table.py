"""The table that names every weight of this package's network in the PyTorch reference, and maps both ways."""

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
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight"}

# Name here (a regular expression) -> name in PyTorch. <unit>, <path> and <leaf> stand for the three tables above;
# <block> is the transformer layer, whose weights are stacked along the first axis here.
TABLE = (
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
    (rf"{LAYERS}\.attention\.query_key_value\.<leaf>", r"<block>_\1.layers.0.0.fn.to_qkv.<leaf>"),
    (rf"{LAYERS}\.attention\.output\.<leaf>", r"<block>_\1.layers.0.0.fn.to_out.0.<leaf>"),
    (rf"{LAYERS}\.perceptron_norm\.<leaf>", r"<block>_\1.layers.0.1.norm.<leaf>"),
    (rf"{LAYERS}\.perceptron_hidden\.<leaf>", r"<block>_\1.layers.0.1.fn.fc1.<leaf>"),
    (rf"{LAYERS}\.perceptron_output\.<leaf>", r"<block>_\1.layers.0.1.fn.fc2.<leaf>"),
    (rf"head_{BRANCH}\.norm\.<leaf>", r"dtn.mlp_head_\1.0.<leaf>"),
    (rf"head_{BRANCH}\.linear\.<leaf>", r"dtn.mlp_head_\1.1.<leaf>"),
)  # fmt: skip


class Layout(NamedTuple):
    """How one tensor is laid out here and in PyTorch, as a pair of functions."""

    to_pytorch: Callable[[np.ndarray], np.ndarray]
    from_pytorch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
CONVOLUTION = Layout(lambda x: x.transpose(4, 3, 0, 1, 2), lambda x: x.transpose(2, 3, 4, 1, 0))  # t h w i o, o i t h w
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # i o, o i
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


def _pytorch_name(path: tuple[str, ...]) -> str:
    ours = ".".join(path)
    tables = {"unit": UNIT_LEAVES, "path": INCEPTION_PATHS, "leaf": LEAVES}
    for pattern, template in TABLE:
        for kind, table in tables.items():
            alternatives = "|".join(re.escape(key) for key in table)
            pattern = pattern.replace(f"<{kind}>", f"(?P<{kind}>{alternatives})")
        if match := re.fullmatch(pattern, ours):
            for kind, key in match.groupdict().items():
                template = template.replace(f"<{kind}>", tables[kind][key])
            return match.expand(template).replace("_medium", "_media")
    raise ConversionError(f"no PyTorch name for the weight {ours}: add it to TABLE in {__name__}")


def _layout(path: tuple[str, ...], dimensions: int) -> Layout:
    leaf = path[-1]
    if leaf == "kernel":
        return CONVOLUTION if dimensions == 5 else LINEAR
    return {"class_token": CLASS_TOKEN, "position_embedding": POSITION_EMBEDDING, "mixture": FRP_MIXTURE}.get(
        leaf, SAME
    )


def to_pytorch(params: Tree, batch_stats: Tree, *, batches_tracked: int) -> dict[str, np.ndarray]:
    """Returns the PyTorch state dict of a network.

    Args:
        params: nested dict of parameters.
        batch_stats: nested dict of running statistics.
        batches_tracked: number of training steps, which PyTorch keeps beside every BatchNorm.
    """
    leaves = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)
    state_dict = {}
    for entry in entries(params, batch_stats):
        tensor = np.asarray(leaves[entry.path])
        state_dict[entry.pytorch_name] = entry.layout.to_pytorch(tensor if entry.block is None else tensor[entry.block])
        if entry.pytorch_name.endswith("running_var"):
            counter = entry.pytorch_name.removesuffix("running_var") + "num_batches_tracked"
            state_dict[counter] = np.asarray(batches_tracked, np.int64)
    return state_dict


def from_pytorch(state_dict: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree) -> tuple[dict, dict]:
    """Returns (parameters, batch statistics) with the values of a PyTorch state dict.

    Args:
        state_dict: name -> array, in PyTorch's layout.
        params: the network's parameters (arrays or shapes with dtype): the result has their structure and types.
        batch_stats: likewise the running statistics.

    Raises:
        ConversionError: lists every missing, unexpected or wrongly shaped tensor.
    """
    problems, used = [], set()
    filled: list[dict] = []
    for tree in (params, batch_stats):
        flat = traverse_util.flatten_dict(tree)
        values = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flat.items()}
        for entry in entries(tree):
            target = values[entry.path] if entry.block is None else values[entry.path][entry.block]
            expected = entry.layout.to_pytorch(target).shape
            found = state_dict.get(entry.pytorch_name)
            used.add(entry.pytorch_name)
            if found is None:
                problems.append(f"missing: {entry.pytorch_name} {expected}")
            elif tuple(found.shape) != expected:
                problems.append(f"shape of {entry.pytorch_name}: found {tuple(found.shape)}, expected {expected}")
            else:
                target[...] = entry.layout.from_pytorch(np.asarray(found))
        filled.append(traverse_util.unflatten_dict(values))
    surplus = [name for name in state_dict if name not in used and not name.endswith("num_batches_tracked")]
    problems += [f"unexpected: {name} {tuple(np.shape(state_dict[name]))}" for name in surplus]
    if problems:
        raise ConversionError(f"{len(problems)} tensors do not fit the network:\n  " + "\n  ".join(problems))
    return filled[0], filled[1]
