"""The table of names: order, layouts and problems, for networks of every kind."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from rgbd_jax.model import FAMILIES, Model
from rgbd_jax.models.name_table import ConversionError
from rgbd_jax.models.pytorch_names import DECOUPLED
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
    """All recorded cases are of the paper's width and heads; the rest is checked by other tensors than those used."""
    manifest = json.loads(path.read_text())
    shuffled = list(np.random.default_rng(3).permutation(list(manifest)))
    fusion, umdr = "fusion" in path.name, "umdr" in path.name
    family = ("umdr_fusion" if umdr else "fusion") if fusion else "umdr" if umdr else "unimodal"
    table = FAMILIES[family].name_table
    assert list(table.in_order(dict.fromkeys(shuffled))) == list(manifest) != shuffled
    detected = table.detect(manifest, {})
    assert TrainedWeights("a file", manifest).family == detected.family == family
    assert (detected.model["width"], detected.model["attention_heads"]) == (1.0, 8)
    if fusion and umdr:
        assert manifest["classifier2.bias"] == [detected.model["num_classes"]]
        assert manifest["pos_embedding_K"] == [1, detected.frames + 1, 512]
        assert detected.fusion == {"spatial_blocks": 2, "temporal_blocks": 4}
        return
    if umdr:
        last = f"dtn.multi_scale_transformers.2.2.layers.{detected.model['temporal_blocks'] - 1}."
        assert last in " ".join(manifest)
        assert f"2.2.layers.{detected.model['temporal_blocks']}." not in " ".join(manifest)
        assert manifest["dtn.multi_scale_transformers.2.3.2.bias"] == [detected.model["num_classes"]]
        assert manifest["SMS_layers.6.TM_project.2.weight"] == [detected.frames, 2 * detected.frames]
        return
    prefix = "Modalit_rgb." if fusion else ""
    assert manifest[f"{prefix}dtn.cls_token_small"] == [1, 1, 512]
    assert f"{prefix}dtn.multi_scale_transformers.{detected.model['temporal_blocks'] - 1}" in " ".join(manifest)
    assert f"{prefix}dtn.multi_scale_transformers.{detected.model['temporal_blocks']}." not in " ".join(manifest)
    classes = manifest["fusion_model.efc.weight" if fusion else "dtn.mlp_head_large.1.bias"][0]
    assert detected.model["num_classes"] == classes
    if detected.model["recoupling"]:
        assert manifest[f"{prefix}dtn.rcm.k.weight"] == [64 * detected.model["recoupling_heads"], detected.frames]


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


def test_layouts():
    """The axes in PyTorch, independently of the table: convolutions o i t h w, linear maps o i, tokens 1 n c."""
    config = small_config("fusion", recoupling_heads=2, temporal_blocks=2)
    tensors = random_state_dict(manifest_of(config, 3))
    shapes = Model(config, 3).shapes()
    params, stats = DECOUPLED.from_pytorch(tensors, *shapes)
    depth = params["depth"]

    def there(name):
        return tensors[f"Modalit_depth.{name}"]

    kernel = depth["spatial"]["mixed_4c"]["branch1"]["kernel"]  # t h w i o
    assert kernel[0, 2, 1, 3, 4] == there("Mixed_4c.b1b.conv3d.weight")[4, 3, 0, 2, 1]
    branch = depth["temporal"]["medium"]
    layer = "dtn.multi_scale_transformers.1.transformer_enc_media.layers.0"
    linear = branch["transformer"]["layers"]["mlp_in"]["kernel"]  # block i o
    assert linear[1, 5, 7] == there(f"{layer}.1.fn.fc1.weight")[7, 5]
    assert branch["position_embedding"][2, 9] == there("dtn.pos_embedding_media")[0, 2, 9]
    assert branch["class_token"][9] == there("dtn.cls_token_media")[0, 0, 9]
    assert depth["spatial"]["frp"]["mixture"][1] == there("frp_module.rpconv1d.weight")[0, 1, 0]
    exchange = params["spatial_fusion"]["hidden"]
    assert exchange["linear"]["kernel"][3, 6] == tensors["crossFusion.0.weight"][6, 3, 0, 0]
    variance = stats["depth"]["temporal"]["medium"]["inception"]["branch0"]["norm"]["variance"]
    assert variance[5] == there("dtn.multi_scale_transformers.0.Mixed_media.b0.bn.running_var")[5]


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


def test_of_widths_with_the_same_channels_the_preferred_one_is_found_despite_a_misshapen_tensor():
    def width(shapes, preferred):
        return DECOUPLED.detect(shapes, {"width": preferred}).model["width"]

    shapes = manifest_of(small_config(width=0.101), 3)
    assert width(shapes, 0.101) == 0.101
    assert width(shapes, 0.5) == width(shapes, 1.0) != 0.101
    shapes = manifest_of(small_config(width=0.25), 3)
    assert width(shapes | {"LinearMap.1.weight": (5, 256)}, 1.0) == 0.25
