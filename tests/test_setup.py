"""The set-up of .venv, with a stand-in for the Python in it: what it asks pip for, and when it asks again."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

LOCKED = ["-m", "pip", "install", "-qq", "--require-hashes", "--requirement", "requirements.lock"]


@pytest.fixture
def set_up(tmp_path):
    """Runs the script in a folder like a checkout; returns it and what pip was asked for."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    for name in ("requirements.lock", "requirements-plan.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    asked, python = tmp_path / "asked", tmp_path / ".venv/bin/python"
    python.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:], file=open({str(asked)!r}, 'a'))\n")
    python.chmod(0o755)

    def run(*extras):
        asked.write_text("")
        command = ["bash", "scripts/setup.sh", *extras]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done, [ast.literal_eval(line) for line in asked.read_text().splitlines()]

    run.folder = tmp_path
    return run


def test_set_up_is_done_once_and_again_when_the_lock_changes(set_up):
    package = ["-m", "pip", "install", "-qq", "--no-deps", "--editable", "."]
    done, asked = set_up()
    assert (done.returncode, done.stdout, asked) == (0, "", [LOCKED, package])
    assert set_up()[1] == []
    (set_up.folder / "requirements.lock").open("a").write("# another\n")
    assert set_up()[1] == [LOCKED, package]


def test_what_an_accelerator_needs_is_installed_and_remembered(set_up):
    assert len(set_up()[1]) == 2
    with_cuda = ["-m", "pip", "install", "-qq", "--editable", ".[cuda]", "--constraint", ".venv/constraints.txt"]
    done, asked = set_up("cuda")
    assert "with cuda" in done.stderr
    assert (done.returncode, asked) == (0, [LOCKED, with_cuda])
    assert set_up("cuda")[1] == set_up()[1] == []
    (set_up.folder / "pyproject.toml").open("a").write("# another\n")
    assert set_up()[1] == [LOCKED, with_cuda]


def test_compilers_are_installed_apart(set_up):
    package = ["-m", "pip", "install", "-qq", "--no-deps", "--editable", "."]
    target = ["--target", ".venv/compilers", "--requirement", "requirements-plan.txt"]
    compilers = ["-m", "pip", "install", "-qq", "--no-deps", "--upgrade", *target]
    assert set_up("plan")[1] == [LOCKED, package, compilers]
    assert set_up("plan")[1] == set_up()[1] == []
    with_cuda = ["-m", "pip", "install", "-qq", "--editable", ".[cuda]", "--constraint", ".venv/constraints.txt"]
    assert set_up("cuda")[1] == [LOCKED, with_cuda, compilers]
    (set_up.folder / "requirements-plan.txt").open("a").write("# another\n")
    assert set_up()[1] == [LOCKED, with_cuda, compilers]


def test_constraints_are_the_locked_versions_without_hashes(set_up):
    set_up("tpu")
    constraints = (set_up.folder / ".venv/constraints.txt").read_text().splitlines()
    found = {str(Requirement(line)) for line in constraints}
    expected = re.findall(r"^([^\s#].*?) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found == {str(Requirement(line)) for line in expected}
    assert any(requirement.startswith("jax==") for requirement in found)
    assert len(found) > 100
