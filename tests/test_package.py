"""The package stands on its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

COMMANDS = (
    "rgbd_jax.main",
    "rgbd_jax.tools.predict",
    "rgbd_jax.tools.export",
    "rgbd_jax.tools.serve",
)  # each defines flags of its own
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = None  # importing it fails, as without it: TensorBoardX takes it where it is installed
commands = sys.argv[1:]
for package in ("rgbd_jax", "datasets", "configs"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if module.name not in commands:
            importlib.import_module(module.name)
assert "tensorflow" not in sys.modules
"""


def test_every_module_imports_without_tensorflow_and_pytorch():
    subprocess.run([sys.executable, "-c", IMPORT_ALL, *COMMANDS], check=True, cwd=ROOT)
    for command in COMMANDS:
        subprocess.run([sys.executable, "-c", f"import {command}"], check=True, cwd=ROOT)
