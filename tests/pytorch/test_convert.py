"""`rgbd convert IN OUT` as a user meets it: round trips bit by bit, the table, the model card, and what is refused."""

import functools
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rgbd_jax.inference.trained import load_trained
from rgbd_jax.models.name_table import parameter_groups
from rgbd_jax.pytorch.torch_file import read_torch, write_torch
from rgbd_jax.pytorch.weights import read_weights
from tests.pytorch.networks import checkpoint, convert, manifest_of, random_state_dict, small_config
from tests.pytorch.recorded import flat
from tests.tiny import save_run, tiny_config

CONFIGS = {
    "rgb": small_config("rgb", recoupling_heads=2, temporal_blocks=2),
    "fusion": small_config("fusion", recoupling=False),
    "umdr_rgb": small_config("umdr_rgb"),
}
MANIFESTS = {stream: manifest_of(config, 3) for stream, config in CONFIGS.items()}
BIAS = "LinearMap.0.bias"
QKV = "dtn.multi_scale_transformers.0.2.layers.0.0.fn.to_qkv.weight"
QUERY = {"rgb": "dtn.rcm.q.weight", "umdr_rgb": "SMS_layers.1.q.weight"}
each_family = pytest.mark.parametrize("network", QUERY, indirect=True)


def refused(message, *arguments):
    """Checks the error of arguments that cannot be used."""
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        convert(*arguments)


class Network(NamedTuple):
    """A small network."""

    stream: str
    source: Path  # its file
    tensors: dict[str, np.ndarray]


@pytest.fixture
def network(request, tmp_path):
    stream = getattr(request, "param", "rgb")
    tensors = random_state_dict(MANIFESTS[stream])
    write_torch(tmp_path / "network.pth.tar", checkpoint(tensors))
    return Network(stream, tmp_path / "network.pth.tar", tensors)


@pytest.mark.parametrize(
    ("stream", "prefix", "optimizer", "dtype"),
    [
        ("rgb", "", True, "float32"),
        ("rgb", "module.", False, "float64"),
        ("fusion", "module.", True, "bfloat16"),
        ("umdr_rgb", "module.", True, "float16"),
    ],
)
def test_round_trips_are_bit_exact(tmp_path, stream, prefix, optimizer, dtype):
    tensors = random_state_dict(MANIFESTS[stream], dtype)
    source = tmp_path / "source.pth.tar"
    decay_vectors = not stream.startswith("umdr_")
    write_torch(source, checkpoint(tensors, prefix=prefix, optimizer=optimizer, decay_vectors=decay_vectors))
    expected = checkpoint(tensors, optimizer=optimizer, decay_vectors=decay_vectors)
    if optimizer:  # a buffer that is None is one that is not there
        state = expected["optimizer"]["state"]
        expected["optimizer"]["state"] = {n: kept for n, kept in state.items() if kept["momentum_buffer"] is not None}

    convert(source, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back.pth.tar")
    assert flat(read_torch(tmp_path / "back.pth.tar")) == flat(expected)

    convert(source, tmp_path / "other" / "model.safetensors")
    convert(tmp_path / "other" / "model.safetensors", tmp_path / "converted_again")
    convert(tmp_path / "converted_again", tmp_path / "again.pth.tar")
    assert (tmp_path / "again.pth.tar").read_bytes() == (tmp_path / "back.pth.tar").read_bytes()
    found = load_file(tmp_path / "other" / "model.safetensors")
    model = {name: tensor for name, tensor in found.items() if not name.startswith("momentum_buffer.")}
    assert flat({name: model[name] for name in tensors}) == flat(tensors)
    assert model.keys() == tensors.keys()
    assert len(found) - len(model) == (len(expected["optimizer"]["state"]) if optimizer else 0)


def test_a_fusion_part_is_converted_with_its_frozen_networks(tmp_path, capsys):
    """As UMDR's reference saves them: three files; the fusion's momentum is numbered without the frozen networks."""
    whole = random_state_dict(manifest_of(small_config("umdr_fusion"), 5))
    files = {"rgb": {}, "depth": {}, "fusion": {}}
    for name, tensor in whole.items():
        part = {"Modalit_rgb": "rgb", "Modalit_depth": "depth"}.get(name.split(".")[0], "fusion")
        files[part][name.removeprefix(f"Modalit_{part}.")] = tensor
    for name, tensors in files.items():
        write_torch(tmp_path / f"{name}.pth.tar", checkpoint(tensors, decay_vectors=False))
    fusion, rgb, depth = (tmp_path / f"{name}.pth.tar" for name in ("fusion", "rgb", "depth"))

    refused("convert IN OUT --rgb RGB --depth DEPTH", fusion, tmp_path / "out")
    refused(f"--rgb={fusion}: a umdr_fusion network, expected a umdr one", fusion, tmp_path / "out", f"--rgb={fusion}")
    refused(f"{rgb} has no frozen depth network", rgb, tmp_path / "out", f"--depth={depth}")
    together = tmp_path / "whole.safetensors"
    convert(fusion, together, f"--rgb={rgb}", f"--depth={depth}")
    printed = capsys.readouterr().out
    assert "umdr_fusion network, num_classes 5, " in printed
    assert (
        ", temporal_blocks 3, attention_heads 8, frp False, fusion.spatial_blocks 1, fusion.temporal_blocks 2"
        in printed
    )
    model = load_file(together)
    assert flat({name: model[name] for name in whole}) == flat(whole)
    refused("has its frozen rgb network: leave out --rgb", together, tmp_path / "out", f"--rgb={rgb}")

    convert(together, tmp_path / "back.pth.tar")
    assert "the frozen networks: the reference reads them from files of their own" in capsys.readouterr().out
    expected = checkpoint(files["fusion"], decay_vectors=False)
    state = expected["optimizer"]["state"]
    expected["optimizer"]["state"] = {n: kept for n, kept in state.items() if kept["momentum_buffer"] is not None}
    assert flat(read_torch(tmp_path / "back.pth.tar")) == flat(expected)
    config = small_config("umdr_fusion")
    assert load_trained(together, config=config).model.family.name == "umdr_fusion"


@each_family
def test_command_reports_what_it_did(network, tmp_path, capsys):
    stream, source, tensors = network
    contents = checkpoint({**tensors, "total_ops": np.zeros(1, np.float32)}, optimizer=False)
    write_torch(source, {**contents, "args": {"lr": 0.1}, "bestacc": "high", "epoch": -1})
    convert(source, tmp_path / "out.safetensors")
    lines = capsys.readouterr().out.splitlines()
    family, blocks, rest = {
        "rgb": ("unimodal", 2, "frp True, recoupling True, recoupling_heads 2, recoupling_hidden 16, clip.frames 8"),
        "umdr_rgb": ("umdr", 3, "frp False, clip.frames 8"),
    }[stream]
    shown = f"{source}: {family} network, num_classes 3, width 0.125, branch_frames (2, 4, 6), "
    assert lines[0].startswith(f"{shown}temporal_blocks {blocks}, attention_heads 8, {rest}, ")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    numbers = sum(tensor.size for name, tensor in tensors.items() if name not in counters)
    assert f"{len(tensors) - len(counters)} {numbers:,}" in [" ".join(line.split()[1:]) for line in lines]
    at = lines.index("skipped: 4")
    assert lines[at + 1 :] == [
        "  args: not part of the network",
        "  epoch: -1; expected a whole number of at least 0",
        "  best_accuracy: 'high'; expected a number of at least 0",
        "  total_ops: the network has no such tensor",
        "missing: nothing",
        f"written to {tmp_path / 'out.safetensors'}",
    ]
    assert load_file(tmp_path / "out.safetensors").keys() == tensors.keys()


def test_other_programs_and_versions(tmp_path):
    """Safetensors of any program; a bare state dict from before PyTorch 0.4.1, which has no step counters."""
    tensors = random_state_dict(MANIFESTS["rgb"])
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "theirs.safetensors")
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    write_torch(tmp_path / "old.pth", old)
    for name, expected in {"theirs.safetensors": tensors, "old.pth": old}.items():
        convert(tmp_path / name, tmp_path / name.split(".")[0])
        convert(tmp_path / name.split(".")[0], tmp_path / f"{name}.pt")
        assert flat(read_torch(tmp_path / f"{name}.pt")) == flat({"model": expected})


def test_numbers_of_several_types_become_the_type_that_holds_all(tmp_path):
    tensors = random_state_dict(MANIFESTS["rgb"], "bfloat16")
    tensors[BIAS] = np.asarray(tensors[BIAS], np.float16)
    write_torch(tmp_path / "mixed.pth", tensors)
    convert(tmp_path / "mixed.pth", tmp_path / "converted")
    for name, tensor in read_weights(tmp_path / "converted").tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name].astype(tensor.dtype), err_msg=name)
        assert tensor.dtype == (np.int64 if name.endswith("num_batches_tracked") else np.float32)


def test_optimizer_states_that_are_not_taken_over_leave_the_weights(network, capsys):
    _, source, tensors = network
    second = parameter_groups(tensors, decay_vectors=True)[0][1]
    size = tensors[second].size
    endless = functools.reduce(lambda inner, _: (inner, inner), range(60), ())  # for whoever hashes it
    for change, reason in (
        (lambda o: o["param_groups"][0].update(dampening=0.1), "only the state of SGD without dampening, maximize"),
        (lambda o: o["param_groups"][0].pop("momentum"), "only the state of SGD"),
        (lambda o: o["param_groups"][0]["params"].pop(), "parameters, the model has"),
        (lambda o: o["param_groups"].append({}), "2 parameter groups"),
        (lambda o: o["param_groups"].clear(), "0 parameter groups"),
        (lambda o: o.clear(), "not the state of an optimizer"),
        (lambda o: o.pop("state"), "not the state of an optimizer"),
        (lambda o: o["param_groups"][0]["params"].__setitem__(0, endless), "other names than numbers"),
        (lambda o: o["state"][1].update(momentum_buffer=np.zeros(5)), f"{second} (5,), expected ({size},)"),
        (lambda o: o["state"][1].update(momentum_buffer="x"), f"{second} str, expected ({size},)"),
        (lambda o: o["state"][1].update(momentum_buffer=np.zeros(size, bool)), "has numbers of type bool"),
        (lambda o: o["state"][1].update(momentum_buffer=np.full(size, np.nan)), "has NaN or infinity"),
        (lambda o: o.update(param_groups=np.zeros(1)), "not the state of an optimizer"),
    ):
        contents = checkpoint(tensors)
        change(contents["optimizer"])
        write_torch(source, contents)
        weights = read_weights(source)
        assert flat(dict(weights.tensors)) == flat(tensors)
        assert (weights.momentum, weights.optimizer) == ({}, {})
        (line,) = weights.left_out
        assert line.startswith("optimizer: ")
        assert reason in line
    for optimizer in ([], "x", {"param_groups": [[]], "state": {}}):
        write_torch(source, {**checkpoint(tensors), "optimizer": optimizer})
        assert read_weights(source).left_out[0].startswith("optimizer: ")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"best_accuracy": 1%s}' % ("0" * 400), "best_accuracy: 1000"),
        ('{"best_accuracy": NaN}', "best_accuracy: nan; expected a number of at least 0"),
        ('{"epoch": true}', "epoch: True; expected a whole number"),
        ('{"optimizer": {"lr": 1e999}}', "optimizer: {'lr': inf}; expected settings that are finite"),
        ('{"config": [1]}', "config: (1,); expected an object"),
        ('{{"config": {}1{}}}'.format('{"a":' * 900, "}" * 900), "metadata rgbd_jax: nested deeper than 32"),
        ("[" * 100_000, "metadata rgbd_jax: nested deeper than 32"),
        ('{"epoch"', "metadata rgbd_jax: Expecting"),
    ],
)
def test_an_odd_record_leaves_the_weights_and_is_not_passed_on(tmp_path, record, reason, capsys):
    save_file(random_state_dict(MANIFESTS["rgb"]), tmp_path / "odd.safetensors", {"rgbd_jax": record})
    convert(tmp_path / "odd.safetensors", tmp_path / "out.safetensors")
    assert f"skipped: 1\n  {reason}" in capsys.readouterr().out
    assert not read_weights(tmp_path / "out.safetensors").left_out


def test_a_number_of_400_digits_in_a_file_of_pytorch(network, tmp_path, capsys):
    write_torch(network.source, {**checkpoint(network.tensors), "bestacc": 10**400, "epoch": 10**400})
    convert(network.source, tmp_path / "converted")
    assert "skipped: 2\n  epoch: 1000" in capsys.readouterr().out
    assert read_weights(tmp_path / "converted").best_accuracy is None


def test_weights_that_are_not_finite_are_converted_with_a_warning_and_predict_nothing(network, tmp_path, caplog):
    stream, source, tensors = network
    write_torch(source, tensors | {BIAS: np.full_like(tensors[BIAS], np.inf)})
    with caplog.at_level("WARNING", "rgbd_jax"):
        logging.getLogger("rgbd_jax").propagate = True
        convert(source, tmp_path / "converted")
    problem = f"NaN or infinity in 1 of {len(tensors)} tensors: {BIAS}"
    assert problem in caplog.text
    with pytest.raises(ValueError, match=problem):
        load_trained(tmp_path / "converted", config=CONFIGS[stream])


@each_family
def test_a_missing_part_is_named(network, tmp_path, capsys):
    """Without it the network can look like another one, which has no such part."""
    stream, source, tensors = network
    write_torch(source, {name: tensor for name, tensor in tensors.items() if name != QUERY[stream]})
    refused(f"not a whole network: {QUERY[stream]} is missing", source, tmp_path / "out")
    if stream == "umdr_rgb":  # has no part that it could do without
        return
    write_torch(source, {name: tensor for name, tensor in tensors.items() if name != "frp_module.rpconv1d.weight"})
    convert(source, tmp_path / "out.pth")
    assert "without frp: there is no frp_module.rpconv1d.weight; the file is incomplete if" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"frp_module.rpconv1d.weight: missing, the config's network has"):
        load_trained(source, config=CONFIGS[stream])


@pytest.mark.parametrize(
    ("stream", "name", "shape", "message"),
    [
        ("rgb", "dtn.pos_embedding_media", (1, 1, 64), "config.model.branch_frames=(2, 0, 6): expected three numbers"),
        ("umdr_rgb", "dtn.cls_tokens.1.pos_embedding", (1, 1, 64), "config.model.branch_frames=(2, 0, 6): expected"),
        ("umdr_fusion", f"Modalit_rgb.{QKV}", (3, 64), "config.model.attention_heads=0: expected at least 1"),
        ("umdr_fusion", f"Modalit_rgb.{QKV}", (24 * 5, 64), "config.model.attention_heads=5: expected a divisor"),
    ],
)
def test_shapes_that_no_network_has(tmp_path, stream, name, shape, message):
    tensors = random_state_dict(manifest_of(small_config(stream), 3))
    write_torch(tmp_path / "odd.pth", tensors | {name: np.zeros(shape, np.float32)})
    refused(f"{tmp_path / 'odd.pth'}: its tensors fit no known network", tmp_path / "odd.pth", tmp_path / "out")
    refused(message, tmp_path / "odd.pth", tmp_path / "out")


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "converted" / "network").mkdir(parents=True)
    (tmp_path / "converted" / "network" / "metadata").touch()
    os.mkfifo(tmp_path / "converted" / "pipe")
    for name, kind in {"pipe.pth": "named pipe", "converted": "named pipe", "/dev/zero": "device"}.items():
        refused(f"is a {kind}; expected a file", tmp_path / name, tmp_path / "out")


def test_what_cannot_be_used_is_refused_and_leaves_nothing(network, tmp_path, monkeypatch):
    _, source, tensors = network
    for change, message in (
        (lambda c: c["model"].update({f"module.{BIAS}": np.zeros(64)}), "both with and without 'module.'"),
        (lambda c: c["model"].update({BIAS: 3}), f"no tensor: {BIAS}"),
        (lambda c: c.pop("model"), "no state dict under 'model'; found optimizer, epoch, bestacc"),
    ):
        contents = checkpoint(tensors)
        change(contents)
        write_torch(source, contents)
        refused(message, source, tmp_path / "out")
    refused("absent", tmp_path / "absent", tmp_path / "out")
    refused("neither the workdir of a run nor a converted checkpoint", tmp_path, tmp_path / "out")
    heads = {name: tensor[:0] for name, tensor in tensors.items() if len(tensor.shape) and tensor.shape[0] == 3}
    assert len(heads) == 6
    write_torch(source, tensors | heads)
    refused(f"tensors without a number: {next(iter(heads))} (0", source, tmp_path / "out")
    write_torch(source, checkpoint(tensors))
    with monkeypatch.context() as patch:  # whatever happens in the middle
        patch.setattr(ocp.Checkpointer, "close", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        refused("no space left", source, tmp_path / "out")
    refused("exists already", source, source)
    refused("'.onnx' is of no kind", source, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == [source]


def test_fusion_in_a_layout_that_pytorch_lacks(tmp_path):
    """What this package trained in the clean layout goes to safetensors, which records the layout, not to PyTorch."""
    tensors = random_state_dict(MANIFESTS["fusion"])
    save_file(tensors, tmp_path / "clean.safetensors", {"rgbd_jax": '{"reference_layout": false}'})
    refused("reference_layout=False", tmp_path / "clean.safetensors", tmp_path / "out.pth")
    convert(tmp_path / "clean.safetensors", tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "again.safetensors")
    refused("reference_layout=False", tmp_path / "again.safetensors", tmp_path / "out.pth")


def rows(card):
    return dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", card, re.MULTILINE))


def test_converted_run_and_its_model_card(tmp_path):
    """All that the run recorded is in the card; a folder that is damaged is refused."""
    run, converted = save_run(tiny_config("data", "depth"), tmp_path / "depth"), tmp_path / "converted"
    convert(run, converted)
    card = rows((converted / "MODEL_CARD.md").read_text())
    assert (card["converted from"], card["top-1"]) == (f"`{run}`", "50.00%")
    assert card["input"] == "8 depth frames of a clip, 3 channels, 32x32 pixels"
    expected = read_weights(run)
    counted = sum(t.size for n, t in expected.tensors.items() if "running" not in n and "tracked" not in n)
    assert card["size"] == f"{counted:,} parameters, width 0.125"
    found = read_weights(converted)
    assert flat(dict(found.tensors)) == flat(dict(expected.tensors))
    assert (found.class_names, found.left_out) == (expected.class_names, ())
    assert len(found.class_names) == 12
    assert expected.steps == 3
    data = max((converted / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    refused(f"{converted}: a damaged converted checkpoint", converted, tmp_path / "out.pth")


def test_model_card_of_a_file(network, tmp_path):
    """What its tensors and numbers determine, and not more."""
    convert(network.source, tmp_path / "back.safetensors")
    with safe_open(tmp_path / "back.safetensors", framework="np") as file:
        text = file.metadata()["model_card"]
    card = rows(text)
    assert (card["best accuracy recorded by the training"], card["epochs"]) == ("62.50%", "7 done")
    assert card["converted from"] == f"`{network.source}`"
    unknown = ("data set", "trained on", "evaluated on", "started from", "git revision")
    assert [card[name] for name in unknown] == ["not recorded"] * len(unknown)
    assert "model-index" not in yaml.safe_load(text.split("---\n")[1])
