"""The package: layers, what is imported, and the wheel outside the checkout."""

import json
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

from rgbd_jax.registry import entries
from tests.test_docs import blocks
from tests.test_main import TINY

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = None  # importing it fails, as where it is missing: TensorBoardX uses it where it is installed
root = importlib.import_module("rgbd_jax")
for package in ("rgbd_jax", "rgbd_jax.configs", "rgbd_jax.datasets"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert "tensorflow" not in sys.modules
"""


def test_every_module_imports_without_tensorflow_and_pytorch():
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, cwd=ROOT)


def test_dependencies_point_down():
    """The layers of pyproject.toml, as import-linter checks them."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel, an empty folder to work in, and a stand-in for Hugging Face's `datasets`."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("rgbd_jax", "configs", "datasets"):  # a copy: setuptools leaves a folder `build` behind
        shutil.copytree(ROOT / name, root / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source")
    wheel = ["-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(root), str(root / "source")]
    subprocess.run([sys.executable, *wheel], check=True, capture_output=True)
    (built,) = root.glob("rgbd_jax-*.whl")
    venv.create(root / "env", with_pip=True)
    python = root / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", str(built)], check=True, capture_output=True)
    # The dependencies of the environment that runs this test, but not its editable install of this package.
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    (site,) = (root / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(dependencies + "\n")
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text("def load_dataset(): return 'Hugging Face'\n")
    (root / "empty").mkdir()
    return built, python, root / "empty"


@pytest.mark.slow
def test_wheel_installs_one_import_name_and_everything_that_it_needs(installed):
    with zipfile.ZipFile(installed[0]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"rgbd_jax"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    modules = [name for name in tracked if name.endswith(".py") and name.split("/")[0] in ("configs", "datasets")]
    expected = {f"rgbd_jax/{name}" for name in modules}
    expected |= {name for name in tracked if name.startswith("rgbd_jax/")}
    assert expected <= set(names)
    assert "rgbd_jax/py.typed" in names


@pytest.mark.slow
def test_wheel_trains_the_demo_beside_hugging_faces_datasets(installed):
    _, python, folder = installed
    code = "import datasets, rgbd_jax.datasets.rgbd_demo.builder; print(datasets.load_dataset())"
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "Hugging Face\n"
    overrides = [f"--config.{flag}" for flag in (*TINY, "train.epochs=1", "data.train_split=train[:48]")]
    command = [python, "-m", "rgbd_jax.main", "--config", "demo:rgb", "--workdir", "run", *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["clips"] == 240
    assert str(ROOT) not in done.stderr
    rgbd = subprocess.run([python.parent / "rgbd", "--help"], cwd=folder, capture_output=True, text=True)
    assert rgbd.returncode == 0
    assert "predict" in rgbd.stdout


@pytest.mark.slow
def test_bundled_networks_recognise_an_example_without_training_or_data(installed):
    _, python, folder = installed
    command = [python.parent / "rgbd", "predict", "--weights=demo-rgb", "--example", "--json", "--out=drawn.mp4"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print(f"rgbd predict --example: {time.monotonic() - started:.1f} s")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top"][0]["class"] == "swipe_left"
    assert (folder / "drawn.mp4").stat().st_size > 1000
    (code,) = blocks((ROOT / "README.md").read_text(), "python")
    started = time.monotonic()
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    print(f"the Python lines of the README: {time.monotonic() - started:.1f} s")
    assert done.stdout.startswith("[('push', 0.")


@pytest.mark.slow
def test_bundled_networks_have_the_accuracy_of_their_cards(installed):
    _, python, folder = installed
    commands, bundled = [], {name: entry for name, entry in entries().items() if entry.file}
    for name, entry in bundled.items():
        demo, modality = "umdr_demo" if "umdr" in name else "demo", name.rpartition("-")[2]
        width, heads = re.search(r"width (\S+), (\d) attention heads", entry.about).groups()
        smaller = [f"--config.model.width={width}", f"--config.model.attention_heads={heads}"]
        commands.append(["convert", name, name])
        commands.append(["eval", f"--config={demo}:{modality}", f"--workdir={name}", *smaller])
    code = f"from rgbd_jax import cli\nfor command in {commands}: cli.main(command)"
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 6
    for (name, entry), result in zip(bundled.items(), results, strict=True):
        top1 = f"{result['top1']:.2%}"
        print(f"{name}: top-1 {top1}")
        assert result["workdir"] == name
        assert entry.accuracy.startswith(f"{top1} top-1 of the demo's 240 validation clips")
        assert f"Top-1 accuracy {top1} on 240 clips" in Path(entry.file).with_suffix(".md").read_text()


def test_bundled_files_have_at_most_8_megabytes():
    files = [Path(entry.file) for entry in entries().values() if entry.file]
    assert len(files) == 6
    assert sum(file.stat().st_size for file in files[0].parent.iterdir()) <= 8_000_000
