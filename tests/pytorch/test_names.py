"""The table of names: order and problems, for networks of every kind; parity tests its layouts."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from rgbd_jax.model import FAMILIES, Model
from rgbd_jax.models.name_table import ConversionError
from rgbd_jax.pytorch.weights import TrainedWeights
from tests.pytorch.networks import DTYPES, manifest_of, random_state_dict, small_config

MANIFESTS = sorted((Path(__file__).parents[1] / "parity").glob("*.manifest.json"))
NETWORKS = {
    "rgb": {"width": 0.0625, "attention_heads": 3, "branch_frames": (1, 3, 5), "recoupling_heads": 3, "frp": False},
    "depth": {"width": 0.1, "temporal_blocks": 3, "recoupling": False},
    "umdr_depth": {"width": 0.1, "attention_heads": 3, "branch_frames": (1, 4, 9), "temporal_blocks": 4},
    "umdr_fusion": {"width": 0.25, "branch_frames": (1, 4, 9), "attention_heads": 4, "temporal_blocks": 3},
    "fusion": {"width": 0.25, "temporal_blocks": 2, "branch_frames": (6, 2, 2), "recoupling_hidden": 9},
}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".")[0])
def test_every_recorded_network_is_recognised_and_ordered(path):
    """All recorded cases are of the paper's width and heads."""
    manifest = json.loads(path.read_text())
    shuffled = list(np.random.default_rng(3).permutation(list(manifest)))
    fusion, umdr = "fusion" in path.name, "umdr" in path.name
    family = ("umdr_fusion" if umdr else "fusion") if fusion else "umdr" if umdr else "unimodal"
    table = FAMILIES[family].name_table
    assert list(table.in_order(dict.fromkeys(shuffled))) == list(manifest) != shuffled
    detected = table.detect(manifest, {})
    assert TrainedWeights("a file", manifest).family == detected.family == family
    assert (detected.model["width"], detected.model["attention_heads"]) == (1.0, 8)


@pytest.mark.parametrize(
    ("stream", "fields", "dtype"),
    [
        ("rgb", 9, "bfloat16"),
        ("depth", 7, "float64"),
        ("fusion", 9, "float16"),
        ("umdr_depth", 6, "float32"),
        ("umdr_fusion", 6, "float32"),
    ],
)
def test_round_trip_and_detection(stream, fields, dtype):
    config, classes = small_config(stream, **NETWORKS[stream]), 5
    config.clip.frames = 7
    tensors = random_state_dict(manifest_of(config, classes), dtype)
    detected = TrainedWeights("a file", tensors).detect()
    model = Model(config, classes)
    assert detected.family == model.family.name
    assert detected.frames == (config.clip.frames if config.model.recoupling else None)
    assert detected.model["num_classes"] == classes
    for name, value in detected.model.items():
        if name != "num_classes":
            assert value == config.model[name], name
    assert len(detected.model) == fields
    assert detected.fusion == ({"spatial_blocks": 1, "temporal_blocks": 2} if stream == "umdr_fusion" else {})

    counters = {name: tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    shapes, table = model.shapes(), model.family.name_table
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, DTYPES[dtype]), shapes)
    back = table.to_pytorch(*table.from_pytorch(tensors, *like))
    assert list(back) == [name for name in tensors if name not in counters]
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape), name
        assert tensor.tobytes() == tensors[name].tobytes(), name


@pytest.mark.parametrize(
    ("stream", "first", "second", "linear", "token"),
    [
        ("rgb", "Mixed_3b", "Mixed_3c", "LinearMap.1.weight", "dtn.cls_token_large"),
        ("umdr_rgb", "SMS_layers.0.Mixed1", "SMS_layers.4.Mixed2", "LinearMap.2.weight", "dtn.cls_tokens.2.cls_token"),
    ],
)
def test_every_problem_is_reported_at_once(stream, first, second, linear, token):
    config = small_config(stream)
    tensors = random_state_dict(manifest_of(config, 3))
    tensors[f"{first}.b0.conv3d.weight"] = tensors[f"{first}.b0.conv3d.weight"][:, :1]
    tensors[linear] = tensors[linear].astype(np.int8)
    tensors["total_ops"] = np.zeros(1)  # of names that the network lacks nothing is said
    tensors["other.num_batches_tracked"] = np.asarray(3)
    tensors[f"{second}.b0.bn.num_batches_tracked"] = np.zeros(2)
    del tensors[token], tensors[f"{second}.b3b.bn.running_mean"]
    with pytest.raises(ConversionError) as caught:
        TrainedWeights("a file", tensors).match(Model(config, 3))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("a file: 5 tensors")
    for name, what in {
        f"{first}.b0.conv3d.weight": "shape (8, 1, 1, 1, 1), the network has (8, 24, 1, 1, 1)",
        linear: "int8",
        f"{second}.b0.bn.num_batches_tracked": "shape (2,), the network has ()",
        token: "missing, the network has (1, 1, 64)",
        f"{second}.b3b.bn.running_mean": "missing",
    }.items():
        assert [line for line in lines[1:] if line.strip().startswith(f"{name}: ") and what in line], name


@pytest.mark.parametrize(
    ("stream", "positions", "head", "query"),
    [
        ("rgb", "dtn.pos_embedding_media", "dtn.mlp_head_small.1.weight", "dtn.rcm.q.weight"),
        (
            "umdr_rgb",
            "dtn.cls_tokens.1.pos_embedding",
            "dtn.multi_scale_transformers.0.3.2.weight",
            "SMS_layers.1.q.weight",
        ),
    ],
)
def test_what_is_no_network_is_refused(stream, positions, head, query):
    whole = random_state_dict(manifest_of(small_config(stream), 3))
    for tensors, message in (
        ({}, "not a network of the reference"),
        *(({n: t for n, t in whole.items() if n != name}, f"{name} is missing") for name in (positions, head)),
        (whole | {query: np.zeros(4)}, f"{query} has shape (4,); expected 2 axes"),
        (whole | {query: np.zeros((0, 4))}, f"tensors without a number: {query} (0, 4)"),
    ):
        with pytest.raises(ConversionError, match=f"a file: .*{re.escape(message)}"):
            TrainedWeights("a file", tensors).detect()
