"""Exported networks, run where this package cannot be imported, and what the command line says."""

import dataclasses
import errno
import functools
import hashlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from rgbd_jax.data import loader
from rgbd_jax.data.source import PreparedSplit, open_split
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.modalities import STREAMS
from rgbd_jax.step import Stream
from rgbd_jax.tools.exporting.target import new_file
from tests.tiny import save_run, tiny_config

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "scripts" / "run_exported.py"
WITH_ONNX = all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnx", "onnxruntime"))
PROVENANCE = {"command": ["train", "--secret"], "git": "0123", "machine": {"platform": "cpu"}, "data": {"training": {}}}

# Everything but the standard library and what an example may use is refused, and the script's main is called for
# several command lines, or its functions for several numbers of clips.
WITHOUT_PACKAGE = """
import json, runpy, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rgbd_jax", "configs", "datasets", "tests", "flax", "orbax", "jax2onnx"):
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)")

sys.meta_path.insert(0, Refused())
try:
    import rgbd_jax
except ModuleNotFoundError:
    pass
else:
    sys.exit("rgbd_jax can be imported")
script, how, *arguments = sys.argv[1:]
if how == "call":
    import numpy as np
    from pathlib import Path
    example = runpy.run_path(script)
    file, out, *clips = arguments
    about, network = example["load"](Path(file))
    clips = [np.load(name) for name in clips]
    said = {count: network(*(x[:count] for x in clips)) for count in (1, 2, 3, 5)[:: 1 if file.endswith("onnx") else 2]}
    np.savez(out, **{f"{name}{count}": value for count, both in said.items()
                     for name, value in zip(("probabilities", "logits"), both, strict=True)})
else:
    for line in json.loads(arguments[0]):
        sys.argv = [script, *line]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            print(stopped.code)
        print("---")
"""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A workdir, what was exported of it, and clips."""

    workdir: Path
    file: Path
    told: dict[str, Any]
    config: ConfigDict
    split: PreparedSplit
    frames: dict[str, np.ndarray]

    @property
    def arrays(self) -> list[str]:
        return [str(self.workdir.parent / f"{name}.npy") for name in self.frames]

    @functools.cached_property
    def predictor(self) -> Predictor:
        return Predictor(load_trained(self.workdir), batch_size=5)


def run_export(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "rgbd_jax.tools.export", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def run_without_package(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE, str(EXAMPLE), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def save_untrained(config: ConfigDict, workdir: Path) -> None:
    """Saves a network as drawn, but for a fusion's classifier: enlarged, it tells clips apart."""
    state = Stream(config, 12).init(3)

    def enlarged(path, leaf):
        return leaf * (100 if "classifier" in jax.tree_util.keystr(path) else 1)

    state = state.replace(params=jax.tree_util.tree_map_with_path(enlarged, state.params))
    save_run(config, workdir, state, PROVENANCE, epoch=2)


def make(small_demo: Path, folder: Path, stream: str) -> tuple[ConfigDict, PreparedSplit, dict[str, np.ndarray]]:
    config = tiny_config(small_demo, stream)
    config.loss.sharpness, config.loss.temperature = (
        stream != "fusion",
        (0.5, 0.7),
    )  # what divides them
    config.data.transforms.resize = (80, 60)  # as the frames are: only cut, so that they can be made exactly again
    config.data.transforms.crop_size = 32
    split = open_split("rgbd_demo", str(small_demo), "validation")
    batch = next(iter(loader.eval_batches(split, config, batch_size=5)))
    frames = {modality: batch["frames"][modality] for modality in STREAMS[stream]}  # in the order of the inputs
    save_untrained(config, folder / "run")
    for name, of_modality in frames.items():
        np.save(folder / f"{name}.npy", of_modality)
    return config, split, frames


@pytest.fixture(scope="module", params=["rgb", "fusion"])
def exported(request, small_demo, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    config, split, frames = make(small_demo, folder, request.param)
    file = folder / "new" / "network.zip"
    check = [] if request.param == "rgb" else ["--nocheck"]  # it takes time
    done = run_export(str(folder / "run"), str(file), "--platforms=cpu,cuda,tpu", *check)
    assert done.returncode == 0, done.stderr
    assert ("checked against the network" in done.stderr) == (not check)
    assert [entry.name for entry in file.parent.iterdir()] == ["network.zip"]
    return Exported(folder / "run", file, json.loads(done.stdout.splitlines()[-1]), config, split, frames)


def assert_same(said: dict[str, np.ndarray], exported: Exported, counts: tuple[int, ...]) -> None:
    expected = exported.predictor(exported.frames)
    assert np.ptp(expected.heads["logits"], axis=0).max() > 1e-3  # clips and classes are told apart
    assert np.ptp(expected.probabilities, axis=1).min() > 1e-3
    for count in counts:
        found = said[f"probabilities{count}"], said[f"logits{count}"]
        for array, right in zip(found, (expected.probabilities, expected.heads["logits"]), strict=True):
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, right[:count], rtol=0, atol=1e-5)


def test_runs_without_this_package(exported, tmp_path):
    run_without_package(tmp_path, "call", str(exported.file), str(tmp_path / "said.npz"), *exported.arrays)
    with np.load(tmp_path / "said.npz") as said:
        assert_same(dict(said), exported, (1, 3))


def test_file_tells_all_that_is_needed(exported):
    config = exported.config
    with zipfile.ZipFile(exported.file) as file:
        assert file.namelist() == ["about.json", "model.jax_export"]
        about = json.loads(file.read("about.json"))
        model = file.read("model.jax_export")
    modalities = ["rgb", "depth"] if config.modality == "fusion" else ["rgb"]
    assert about["classes"] == list(exported.split.class_names)
    assert [entry["name"] for entry in about["inputs"]] == modalities
    assert all(entry["shape"] == ["batch", 8, 32, 32, 3] and entry["dtype"] == "uint8" for entry in about["inputs"])
    assert [(entry["name"], entry["shape"]) for entry in about["outputs"]] == [
        ("probabilities", ["batch", 12]),
        ("logits", ["batch", 12]),
    ]
    space = about["preprocessing"]["space"]
    assert (space["resize"], space["size"]) == ({"width": 80, "height": 60}, 32)
    assert space["crop"] == {"left": (80 - 32) // 2, "top": (60 - 32) // 2, "size": 32}
    assert about["preprocessing"].get("depth", {}).get("range_mm") == ([500, 2500] if "depth" in modalities else None)
    settings = json.dumps(json.loads((exported.workdir / "config.json").read_text()), sort_keys=True)
    assert about["source"]["config_sha256"] == hashlib.sha256(settings.encode()).hexdigest()
    assert about["source"]["trained"] == {name: PROVENANCE[name] for name in ("git", "data")}
    assert about["platforms"] == exported.told["platforms"] == ["cpu", "cuda", "tpu"]
    assert exported.told["bytes"] == exported.file.stat().st_size
    # The file may go far: no folder of this machine, and no command.
    for private in (str(exported.workdir.parent), str(ROOT), str(Path(sys.prefix)), "--secret"):
        assert private not in json.dumps(about)
        assert private.encode() not in model


def test_example_asks_about_folders_of_frames(exported, tmp_path):
    clip = exported.split[7]
    folders = []
    for modality in exported.frames:
        folders.append(tmp_path / modality)
        folders[-1].mkdir()
        for number, encoded in enumerate(clip.frames[modality]):
            kind = "jpg" if modality == "rgb" else "png"
            (folders[-1] / f"{number:03}.{kind}").write_bytes(encoded)
    arrays = [np.load(name) for name in exported.arrays]
    wrong = [
        (
            [arrays[0].astype(np.float32), *arrays[1:]],
            "float32 (5, 8, 32, 32, 3); the input rgb takes uint8 (batch,",
        ),
        ([arrays[0][:, :, :16], *arrays[1:]], "uint8 (5, 8, 16, 32, 3); the input rgb takes uint8 (batch, 8, 32, 32,"),
        (arrays * 2, "takes rgb"),
        ([*arrays[:-1], arrays[-1][0, 0]], "uint8 (32, 32, 3); the input"),
    ]
    if len(arrays) == 2:
        wrong.append(([arrays[0], arrays[1][:3]], "5 and 3 clips"))
    lines = [[str(exported.file), *map(str, folders)]]
    for number, (given, _) in enumerate(wrong):
        names = [str(tmp_path / f"{number}_{place}.npy") for place in range(len(given))]
        for name, array in zip(names, given, strict=True):
            np.save(name, array)
        lines.append([str(exported.file), *names])
    damaged = bytearray(exported.file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.zip").write_bytes(damaged)
    lines.append([str(tmp_path / "damaged.zip"), *exported.arrays])
    lines.append([str(tmp_path / "absent.zip"), *exported.arrays])
    right, *errors = run_without_package(tmp_path, "main", json.dumps(lines)).split("---\n")[:-1]

    seen = loader.load_clip(clip, exported.config)
    with zipfile.ZipFile(exported.file) as file:
        preprocessing = json.loads(file.read("about.json"))["preprocessing"]
    read_frames = runpy.run_path(str(EXAMPLE))["read_frames"]
    for folder in folders:
        np.testing.assert_array_equal(read_frames(folder, folder.name, preprocessing)[0], seen[folder.name])
    prediction = exported.predictor({modality: of_clip[None] for modality, of_clip in seen.items()})
    best = np.argsort(-prediction.probabilities[0], kind="stable")[:5]
    names = exported.split.class_names
    assert right == "clip 0: " + ", ".join(f"{names[k]} {prediction.probabilities[0, k]:.1%}" for k in best) + "\n"
    said = [*(text for _, text in wrong), "Bad CRC-32 for file 'model.jax_export'", "absent.zip"]
    for error, text in zip(errors, said, strict=True):
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert text in error


@pytest.mark.optional
@pytest.mark.skipif(not WITH_ONNX, reason="the packages of requirements-onnx.txt are not installed")
def test_onnx_says_the_same(exported, tmp_path):
    file = tmp_path / "network.onnx"
    done = run_export(str(exported.workdir), str(file))
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.onnx"]
    run_without_package(tmp_path, "call", str(file), str(tmp_path / "said.npz"), *exported.arrays)
    with np.load(tmp_path / "said.npz") as said:
        assert_same(dict(said), exported, (1, 2, 5))
    for private in (str(exported.workdir.parent), str(ROOT), str(Path(sys.prefix))):
        assert private.encode() not in file.read_bytes()


@pytest.mark.skipif(WITH_ONNX, reason="the packages of requirements-onnx.txt are installed")
def test_onnx_is_told_to_be_missing(tmp_path):
    done = run_export(str(tmp_path), str(tmp_path / "network.onnx"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --format=onnx needs jax2onnx")
    assert "requirements-onnx.txt" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "flags", "said"),
    [
        ("there.zip", [], "there.zip exists already: give another name, or remove it"),
        ("new.zip", ["--platforms=cpu,gpu"], "--platforms=cpu,gpu: expected some of cpu, cuda, rocm, tpu"),
        ("new.zip", ["--format=onnx"], "named *.onnx"),
        ("new.zip", [], "is neither the workdir of a run nor a converted checkpoint"),
    ],
)
def test_errors_are_told_in_a_line(tmp_path, target, flags, said):
    (tmp_path / "there.zip").write_text("precious")
    (tmp_path / "empty").mkdir()
    done = run_export(str(tmp_path / "empty"), str(tmp_path / target), *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "there.zip").read_text() == "precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "there.zip"]


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.zip"

    def write(disturb) -> None:
        with new_file(path) as unfinished:
            unfinished.write_text("half")
            disturb()

    def fill_disk() -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match=r"file\.zip cannot be written: full"):
        write(fill_disk)
    assert not list(path.parent.iterdir())
    with pytest.raises(FileExistsError, match="exists already"):
        write(lambda: path.write_text("by another process"))
    assert path.read_text() == "by another process"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.zip"]
