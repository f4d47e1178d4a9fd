"""`python -m rgbd_jax.pytorch IN OUT` as a user meets it: round trips bit by bit, the table, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rgbd_jax.pytorch.__main__ import main
from rgbd_jax.pytorch.pytorch_file import read_pytorch
from tests.convert.networks import checkpoint, manifest_of, random_state_dict, small_config
from tests.convert.torch_files import flat, legacy_file, zip_file

ROOT = Path(__file__).parents[2]
MANIFESTS = {
    "rgb": manifest_of(small_config("rgb", recoupling_heads=2, temporal_blocks=2), 3),
    "fusion": manifest_of(small_config("fusion", recoupling=False), 4),
}


def convert(*arguments):
    with mock.patch.object(sys, "argv", ["convert", *map(str, arguments)]):
        main()


def refused(capsys, *arguments):
    """What is said of arguments that cannot be used; nothing may be printed as a result."""
    with pytest.raises(SystemExit) as caught:
        convert(*arguments)
    assert capsys.readouterr().out == ""
    assert str(caught.value).startswith("error: ")
    return str(caught.value)


@pytest.fixture
def rgb(tmp_path):
    """The file of a small network, and its tensors."""
    tensors = random_state_dict(MANIFESTS["rgb"])
    (tmp_path / "rgb.pth.tar").write_bytes(zip_file(checkpoint(tensors)))
    return tmp_path / "rgb.pth.tar", tensors


@pytest.mark.parametrize(
    ("form", "stream", "prefix", "optimizer", "dtype"),
    [
        (zip_file, "rgb", "", True, "float32"),
        (legacy_file, "rgb", "module.", True, "float64"),
        (legacy_file, "rgb", "", False, "float16"),
        (zip_file, "fusion", "module.", True, "bfloat16"),
        (zip_file, "fusion", "", False, "float32"),
    ],
)
def test_round_trips_are_bit_exact(tmp_path, form, stream, prefix, optimizer, dtype):
    tensors = random_state_dict(MANIFESTS[stream], dtype)
    source = tmp_path / "source.pth.tar"
    source.write_bytes(form(checkpoint(tensors, prefix=prefix, optimizer=optimizer)))
    expected = checkpoint(tensors, optimizer=optimizer)
    if optimizer:  # a buffer that is None is one that is not there
        state = expected["optimizer"]["state"]
        expected["optimizer"]["state"] = {n: kept for n, kept in state.items() if kept["momentum_buffer"] is not None}

    convert(source, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back.pth.tar")
    assert flat(read_pytorch(tmp_path / "back.pth.tar")) == flat(expected)

    convert(source, tmp_path / "other" / "model.safetensors")
    convert(tmp_path / "other" / "model.safetensors", tmp_path / "converted_again")
    convert(tmp_path / "converted_again", tmp_path / "again.pth.tar")
    assert (tmp_path / "again.pth.tar").read_bytes() == (tmp_path / "back.pth.tar").read_bytes()
    convert(tmp_path / "converted_again", tmp_path / "again.safetensors")
    found = load_file(tmp_path / "again.safetensors")
    model = {name: tensor for name, tensor in found.items() if not name.startswith("momentum_buffer.")}
    assert flat({name: model[name] for name in tensors}) == flat(tensors)
    assert model.keys() == tensors.keys()
    assert len(found) - len(model) == (len(expected["optimizer"]["state"]) if optimizer else 0)


def test_command_tells_what_it_did(rgb, tmp_path):
    source, tensors = rgb
    contents = checkpoint({**tensors, "total_ops": np.zeros(1, np.float32)}, optimizer=False)
    source.write_bytes(zip_file({**contents, "scheduler": {"last_epoch": 7}}))
    command = [sys.executable, "-m", "rgbd_jax.pytorch", source, tmp_path / "out.safetensors"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stderr) == (0, "")
    lines = finished.stdout.splitlines()
    for fact in ("one stream, 3 classes, 8 frames, 2 temporal blocks", "2 recoupling heads", "width 0.125", "7 epochs"):
        assert fact in lines[0]
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    numbers = sum(tensor.size for name, tensor in tensors.items() if name not in counters)
    assert f"{len(tensors) - len(counters)} {numbers:,}" in [" ".join(line.split()[1:]) for line in lines]
    at = lines.index("skipped: 2")
    assert lines[at + 1 :] == [
        "  scheduler: not part of the network",
        "  total_ops: the network has no such tensor",
        "missing: nothing",
        f"written to {tmp_path / 'out.safetensors'}",
    ]
    assert load_file(tmp_path / "out.safetensors").keys() == tensors.keys()


CONVERT_AND_MEASURE = """
import re
from rgbd_jax.pytorch import files
from rgbd_jax.pytorch.__main__ import main

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

imported = peak()
main()
print(peak() - imported)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the largest memory of a process")
def test_network_of_full_size(tmp_path):
    """38 M parameters come back bit by bit, and the file is never in memory twice."""
    tensors = random_state_dict(json.loads((ROOT / "tests" / "parity" / "ntu_rgb_128.manifest.json").read_text()))
    source = tmp_path / "full.pth.tar"
    source.write_bytes(zip_file(checkpoint(tensors, optimizer=False)))
    command = [sys.executable, "-c", CONVERT_AND_MEASURE, source, tmp_path / "converted"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert int(finished.stdout.splitlines()[-1]) < 1.8 * source.stat().st_size
    convert(tmp_path / "converted", tmp_path / "back.pth.tar")
    assert flat(read_pytorch(tmp_path / "back.pth.tar")) == flat(checkpoint(tensors, optimizer=False))


def test_safetensors_of_other_programs(tmp_path):
    tensors = random_state_dict(MANIFESTS["rgb"])
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "theirs.safetensors")
    convert(tmp_path / "theirs.safetensors", tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back.pth")
    assert flat(read_pytorch(tmp_path / "back.pth")) == flat({"model": checkpoint(tensors)["model"]})


def test_bare_state_dict_without_counters(tmp_path):
    """Files from before PyTorch 0.4.1 have no step counters."""
    tensors = random_state_dict(MANIFESTS["fusion"])
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    (tmp_path / "bare.pth").write_bytes(legacy_file(checkpoint(tensors)["model"]))
    convert(tmp_path / "bare.pth", tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back.pt")
    assert flat(read_pytorch(tmp_path / "back.pt")) == flat({"model": checkpoint(tensors)["model"]})


@pytest.mark.parametrize("change", [{"nesterov": True}, {"dampening": 0.1}, {"maximize": True}])
def test_optimizers_that_are_not_taken_over(rgb, tmp_path, capsys, change):
    source, tensors = rgb
    contents = checkpoint(tensors)
    contents["optimizer"]["param_groups"][0].update(change)
    source.write_bytes(zip_file(contents))
    convert(source, tmp_path / "out.pth")
    assert "optimizer: only the state of SGD" in capsys.readouterr().out
    assert "optimizer" not in read_pytorch(tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["optimizer"]["param_groups"][0]["params"].pop(), "parameters, its model"),
        (lambda c: c["optimizer"]["param_groups"].append({}), "one parameter group"),
        (lambda c: c["optimizer"]["param_groups"][0].update(params=[[]] * 200), "one parameter group"),
        (lambda c: c["optimizer"].pop("state"), "one parameter group"),
        (
            lambda c: c["optimizer"]["state"][1].update(momentum_buffer=np.zeros(5)),
            "LinearMap.0.bias (5,), expected (128,)",
        ),
        (lambda c: c["optimizer"]["state"][1].update(momentum_buffer="x"), "LinearMap.0.bias str, expected"),
        (lambda c: c.update(epoch=-1), "'epoch' is -1; expected a whole number"),
        (lambda c: c.update(epoch=float("nan")), "'epoch' is nan; expected a whole number"),
        (lambda c: c.update(bestacc="high"), "'bestacc' is high; expected a number"),
        (lambda c: c["model"].update({"module.LinearMap.0.bias": np.zeros(64)}), "both with and without 'module.'"),
        (lambda c: c["model"].update({"LinearMap.0.bias": 3}), "no tensor: 'LinearMap.0.bias'"),
        (lambda c: c.pop("model"), "no state dict under 'model'; found 'optimizer', 'epoch', 'bestacc'"),
    ],
)
def test_checkpoints_that_contradict_themselves(rgb, tmp_path, capsys, change, said):
    source, tensors = rgb
    contents = checkpoint(tensors)
    change(contents)
    source.write_bytes(zip_file(contents))
    message = refused(capsys, source, tmp_path / "out")
    assert str(source) in message
    assert said in message
    assert list(tmp_path.iterdir()) == [source]


def test_all_misfits_are_told_at_once(rgb, tmp_path, capsys):
    source, tensors = rgb
    tensors = dict(tensors)
    tensors["Mixed_4b.b0.conv3d.weight"] = tensors["Mixed_4b.b0.conv3d.weight"][:4]
    tensors["Mixed_4b.b1a.conv3d.weight"] = tensors["Mixed_4b.b1a.conv3d.weight"].astype(np.int32)
    del tensors["dtn.cls_token_small"], tensors["dtn.rcm.k.weight"]
    source.write_bytes(zip_file(checkpoint(tensors)))
    message = refused(capsys, source, tmp_path / "out")
    assert f"{source}: 4 tensors" in message
    for name in ("Mixed_4b.b0.conv3d.weight: shape (4, ", "Mixed_4b.b1a.conv3d.weight: numbers of type int32",
                 "dtn.cls_token_small: missing", "dtn.rcm.k.weight: missing"):  # fmt: skip
        assert name in message


def test_blocks_of_different_types_are_refused_for_a_converted_checkpoint(rgb, tmp_path, capsys):
    source, tensors = rgb
    name = "dtn.multi_scale_transformers.1.transformer_enc_large.layers.0.1.fn.fc2.bias"
    changed = {**tensors, name: tensors[name].astype(np.float64)}
    source.write_bytes(zip_file(checkpoint(changed)))
    message = refused(capsys, source, tmp_path / "out")
    assert "different types of numbers: temporal.large.transformer.layers.mlp_out.bias" in message
    assert list(tmp_path.iterdir()) == [source]


def test_files_that_are_not_there_or_not_to_be_written(rgb, tmp_path, capsys):
    source, _ = rgb
    assert str(tmp_path / "absent") in refused(capsys, tmp_path / "absent", tmp_path / "out")
    assert "neither the workdir of a run nor a converted checkpoint" in refused(capsys, tmp_path, tmp_path / "out")
    assert "exists already" in refused(capsys, source, source)
    assert "'.onnx' is of no kind" in refused(capsys, source, tmp_path / "out.onnx")
    (tmp_path / "page.pth.tar").write_text("<!DOCTYPE html><html>Google Drive</html>")
    assert "page.pth.tar: the file is an HTML page" in refused(capsys, tmp_path / "page.pth.tar", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "page.pth.tar"}


def test_damaged_converted_checkpoint(rgb, tmp_path, capsys):
    source, _ = rgb
    convert(source, tmp_path / "converted")
    capsys.readouterr()
    data = max((tmp_path / "converted" / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    message = refused(capsys, tmp_path / "converted", tmp_path / "out.pth")
    assert str(tmp_path / "converted") in message
    assert "damaged" in message


def test_fusion_in_a_layout_that_pytorch_lacks(tmp_path, capsys):
    """What this package trained in the clean layout goes to safetensors, which tells the layout, not to PyTorch."""
    tensors = random_state_dict(MANIFESTS["fusion"])
    save_file(tensors, tmp_path / "clean.safetensors", {"rgbd_jax": '{"reference_layout": false}'})
    assert "reference_layout=False" in refused(capsys, tmp_path / "clean.safetensors", tmp_path / "out.pth")
    convert(tmp_path / "clean.safetensors", tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "again.safetensors")
    capsys.readouterr()
    assert "reference_layout=False" in refused(capsys, tmp_path / "again.safetensors", tmp_path / "out.pth")
