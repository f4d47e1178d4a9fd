"""Exported networks, run where this package cannot be imported, and what the command refuses."""

import hashlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from rgbd_jax.data import loader
from rgbd_jax.data.source import open_split
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.model import Model
from rgbd_jax.step import new_state
from rgbd_jax.tools import export
from tests.conftest import ROOT
from tests.tiny import run_command, save_run, tiny_config

SCRIPT = str(ROOT / "scripts" / "run_exported.py")
EXAMPLE = SimpleNamespace(**runpy.run_path(SCRIPT))
WITH_ONNX = all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnx", "onnxruntime"))
PROVENANCE = {"command": ["train", "--secret"], "git": "0123", "machine": {"platform": "cpu"}, "data": {"training": {}}}

# Runs a script for several command lines, where nothing but the standard library and what it may use can be imported.
WITHOUT_PACKAGE = """
import json, runpy, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rgbd_jax", "configs", "datasets", "tests", "flax", "orbax", "jax2onnx"):
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)")

sys.meta_path.insert(0, Refused())
script, lines = sys.argv[1:]
for line in json.loads(lines):
    sys.argv = [script, *line]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stopped:
        print(stopped.code)
    print("---")
"""


def private_texts(folder, content):
    """Returns what is in a file that nobody else should read."""
    return [text for text in (str(folder), str(ROOT), sys.prefix, "--secret") if text.encode() in content]


@pytest.fixture(
    scope="module",
    params=["fusion", pytest.param("umdr_depth", marks=pytest.mark.slow)],
)
def exported(request, small_demo, tmp_path_factory):
    """A workdir, the file that was exported from it, and clips."""
    folder, modality = tmp_path_factory.mktemp(request.param), request.param
    config = tiny_config(small_demo, modality)
    config.loss.sharpness, config.loss.temperature = modality != "fusion", (0.5, 0.7)
    config.data.transforms.resize = (80, 60)  # as the frames are: only cut, so that they can be made exactly again
    config.data.transforms.crop_size = 32
    model = Model(config, 12)
    params, batch_stats = model.init(3)  # not trained, with a larger classifier that separates the clips
    if modality == "fusion":
        params["autoencoder"]["classifier"]["kernel"] *= 100
    workdir = save_run(config, folder / "run", new_state(model, params, batch_stats), PROVENANCE, epoch=2)
    split = open_split("rgbd_demo", str(small_demo), "validation")
    batch = next(iter(loader.eval_batches(split, config, batch_size=5)))
    frames = {name: batch["frames"][name] for name in model.modalities}  # in the order of the inputs
    for name, clips in frames.items():
        np.save(folder / f"{name}.npy", clips)
    file, trained, check = folder / "new" / "network.zip", load_trained(workdir), modality == "rgb"  # it takes time
    result = export.export(trained, file, "best", ("cpu", "cuda", "tpu"), check=check)
    assert (result["largest_difference"] < 1e-5) if check else "largest_difference" not in result
    assert [entry.name for entry in file.parent.iterdir()] == ["network.zip"]
    predictor = Predictor(trained, batch_size=5)
    return SimpleNamespace(
        folder=folder, file=file, result=result, config=config, split=split, frames=frames, predictor=predictor
    )


def assert_same_outputs(file, exported, counts):
    _, network = EXAMPLE.load(file)
    expected = exported.predictor(exported.frames)
    assert np.ptp(expected.heads["logits"], axis=0).max() > 1e-3  # clips differ, and classes
    assert np.ptp(expected.probabilities, axis=1).min() > 1e-3
    for count in counts:
        outputs = network(*(clips[:count] for clips in exported.frames.values()))
        for output, right in zip(outputs, (expected.probabilities, expected.heads["logits"]), strict=True):
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, right[:count], rtol=0, atol=1e-5)


def test_outputs_are_those_of_the_model(exported):
    assert_same_outputs(exported.file, exported, [3])  # the example below predicts one clip


@pytest.mark.optional
@pytest.mark.skipif(not WITH_ONNX, reason="the packages of requirements-onnx.txt are not installed")
def test_onnx_outputs_are_those_of_the_model(exported, tmp_path):
    file = tmp_path / "network.onnx"
    assert export.export(exported.predictor.trained, file)["largest_difference"] < 1e-5
    assert_same_outputs(file, exported, [1, 3])
    assert not private_texts(exported.folder, file.read_bytes())


def test_metadata_holds_all_that_is_needed_and_nothing_private(exported):
    with zipfile.ZipFile(exported.file) as file:
        assert file.namelist() == ["about.json", "model.jax_export"]
        about = json.loads(file.read("about.json"))
        assert not private_texts(exported.folder, file.read("about.json") + file.read("model.jax_export"))
    modalities = list(exported.frames)
    assert about["classes"] == list(exported.split.class_names)
    assert [entry["name"] for entry in about["inputs"]] == modalities
    assert {tuple(entry["shape"]) for entry in about["inputs"]} == {("batch", 8, 32, 32, 3)}
    assert [entry["shape"] for entry in about["outputs"]] == [["batch", 12]] * 2
    space = about["preprocessing"]["space"]
    assert (space["resize"], space["size"]) == ({"width": 80, "height": 60}, 32)
    assert space["crop"] == {"left": (80 - 32) // 2, "top": (60 - 32) // 2, "size": 32}
    assert about["preprocessing"].get("depth", {}).get("range_mm") == ([500, 2500] if "depth" in modalities else None)
    settings = json.dumps(json.loads((exported.folder / "run" / "config.json").read_text()), sort_keys=True)
    assert about["source"]["config_sha256"] == hashlib.sha256(settings.encode()).hexdigest()
    assert about["source"]["trained"] == {name: PROVENANCE[name] for name in ("git", "data")}
    assert about["platforms"] == exported.result["platforms"] == ["cpu", "cuda", "tpu"]
    assert exported.result["bytes"] == exported.file.stat().st_size


def test_example_runs_without_this_package_and_names_faulty_input(exported, tmp_path):
    clip, arrays = exported.split[7], [str(exported.folder / f"{name}.npy") for name in exported.frames]
    folders = [tmp_path / modality for modality in exported.frames]
    for folder in folders:
        folder.mkdir()
        for number, encoded in enumerate(clip.frames[folder.name]):
            (folder / f"{number:03}.{'jpg' if folder.name == 'rgb' else 'png'}").write_bytes(encoded)
    modality, first = next(iter(exported.frames.items()))
    for name, array in {"float": first.astype(np.float32), "low": first[:, :, :16], "few": first[:3]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    damaged = bytearray(exported.file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.zip").write_bytes(damaged)
    file, (_, *others) = str(exported.file), arrays
    wrong = {
        f"float32 (5, 8, 32, 32, 3); the input {modality} takes uint8 (batch,": [file, "float.npy", *others],
        f"uint8 (5, 8, 16, 32, 3); the input {modality} takes uint8 (batch, 8, 32, 32,": [file, "low.npy", *others],
        f"takes {modality}": [file, *arrays, *arrays],
        "Bad CRC-32 for file 'model.jax_export'": ["damaged.zip", *arrays],
        "absent.zip": ["absent.zip", *arrays],
        **({"3 and 5 clips": [file, "few.npy", *others]} if others else {}),
    }
    lines = json.dumps([[file, *map(str, folders)], *wrong.values()])
    command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE, SCRIPT, lines]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    right, *errors = done.stdout.split("---\n")[:-1]

    clips = loader.load_clip(clip, exported.config)
    about, _ = EXAMPLE.load(exported.file)
    for folder in folders:
        found = EXAMPLE.read_frames(folder, folder.name, about["preprocessing"])
        np.testing.assert_array_equal(found[0], clips[folder.name])
    (probabilities,) = exported.predictor({modality: frames[None] for modality, frames in clips.items()}).probabilities
    best, names = np.argsort(-probabilities, kind="stable")[:5], exported.split.class_names
    assert right == "clip 0: " + ", ".join(f"{names[k]} {probabilities[k]:.1%}" for k in best) + "\n"
    for error, text in zip(errors, wrong, strict=True):
        assert (error.startswith("error: "), error.count("\n"), text in error) == (True, 1, True)


def test_command_and_its_refusals(small_demo, tmp_path, capsys, monkeypatch):
    workdir, out = save_run(tiny_config(small_demo), tmp_path / "run"), tmp_path / "network.zip"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is neither the workdir of a run nor a converted checkpoint"):
        run_command(export, tmp_path / "empty", out)
    if not WITH_ONNX:
        with pytest.raises(ValueError, match=r"needs jax2onnx.*requirements-onnx\.txt"):
            run_command(export, workdir, tmp_path / "network.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(export, "_read_stablehlo", lambda path: lambda frames: (np.ones((2, 12)), np.ones((2, 12))))
        with pytest.raises(ValueError, match="exported outputs differ from the model's"):
            run_command(export, workdir, out, "--platforms=cpu")
    assert {entry.name for entry in tmp_path.iterdir()} == {"empty", "run"}
    run_command(export, workdir, out, "--platforms", "tpu", "--checkpoint=latest")  # not checked: there is none
    text, last = capsys.readouterr().out.splitlines()
    assert text.startswith("12 classes")
    assert json.loads(last).items() >= {"file": str(out), "platforms": ["tpu"], "classes": 12}.items()
    assert "largest_difference" not in json.loads(last)
    with pytest.raises(FileExistsError, match="exists already: give another name"):
        run_command(export, workdir, out)
