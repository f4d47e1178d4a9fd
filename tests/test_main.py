"""The command line as a user meets it: results, and errors for wrong input."""

import json
import os
import subprocess
import sys

import pytest
from flax.traverse_util import flatten_dict
from rgbd_jax.configs import demo

from rgbd_jax import cli
from tests.conftest import ROOT
from tests.tiny import tiny_config

DEMO, SMALL = (flatten_dict(config.to_dict(), sep=".") for config in (demo.get_config(), tiny_config("data")))
TINY = tuple(f"{field}={value}" for field, value in SMALL.items() if value != DEMO[field])


def run(*arguments):
    """Runs a command in a process of its own."""
    command = [sys.executable, "-m", "rgbd_jax", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture
def refused(command_line, capsys):
    """Runs a command in this process, which has to end with an error that holds these texts."""

    def refused(arguments, *messages):
        with pytest.raises(SystemExit) as stopped:
            command_line(*arguments)
        assert stopped.value.code == 2 or str(stopped.value.code).startswith("error: ")
        printed = capsys.readouterr()
        assert printed.out == ""
        for text in messages:
            assert text in f"{printed.err}{stopped.value.code}"

    return refused


def test_train_and_evaluate_end_with_one_json_line(small_demo, tmp_path):
    overrides = [f"--config.{flag}" for flag in (*TINY, f"data.data_dir={small_demo}")]
    results = []
    for mode in ("train", "eval"):
        finished = run(mode, "--config=configs/demo.py", "--workdir", tmp_path / "run", *overrides)
        assert finished.returncode == 0, finished.stderr
        results.append(json.loads(finished.stdout.splitlines()[-1]))
    trained, evaluated = results
    assert (trained["mode"], evaluated["mode"]) == ("train", "eval")
    for name in evaluated.keys() - {"mode", "workdir", "seconds"}:
        assert evaluated[name] == pytest.approx(trained[name], rel=1e-5), name
    assert {"workdir", "step", "clips", "top1", "top5", "reference_protocol", "mean_per_class"} <= evaluated.keys()


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    finished = run("train", "--config=configs/nothing.py", "--workdir", tmp_path / "run")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("error: --config=configs/nothing.py: no such file")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "overrides", "messages"),
    [
        ("train --config=demo", ["model.widht=2"], ("widht", 'Did you mean "width"')),
        ("train --config=demo:audio", [], ("config.modality='audio'",)),
        ("train --config=demo", ["data.data_dir={demo}", "train.batch_size=49"], ("48 clips", "batch of 49")),
        ("train --config=demo", ["data.data_dir={demo}", "data.eval_split=test"], ("test", "train, validation")),
        ("train --config=demo", ["data.data_dir={demo}", "model.num_classes=5"], ("num_classes=5", "12 classes")),
        ("train --config=folder", ["data.data_dir={absent}"], ("absent", "data build")),
        ("train --config=folder", ["data.raw_dir={absent}"], ("absent: no such folder",)),
        # before anything is rendered
        ("train --config=demo", ["data.data_dir={absent}", "train.batch_size=0"], ("config.train.batch_size",)),
        ("eval --config=demo", ["data.data_dir={absent}"], ("holds no run",)),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(
    refused, small_demo, tmp_path, command, overrides, messages
):
    places = {"demo": small_demo, "absent": tmp_path / "absent"}
    fields = [f"--config.{override.format(**places)}" for override in overrides]
    refused([*command.split(), f"--workdir={tmp_path / 'run'}", *fields], *messages)
    assert list(tmp_path.iterdir()) == []


def test_faulty_clips_stop_before_anything_is_written(refused, tmp_path):
    raw, data_dir = tmp_path / "raw", tmp_path / "data"
    (raw / "rgb" / "wave").mkdir(parents=True)
    (raw / "rgb" / "wave" / "000000.jpg").write_bytes(b"not an image")
    for split in ("train", "validation"):
        (raw / f"{split}.txt").write_text("wave 1 0\nwave two 1\n")
    fields = [f"--config.data.raw_dir={raw}", f"--config.data.data_dir={data_dir}"]
    arguments = ["train", "--config=folder", f"--workdir={tmp_path / 'run'}", *fields]
    refused(arguments, f"{raw / 'train.txt'}:2", f"{raw / 'validation.txt'}:2")
    assert not (tmp_path / "run").exists()
    assert not list(data_dir.rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean `rgbd train`?"),
        (["check"], "did you mean `rgbd data check`?"),
        (["data", "biuld"], "did you mean `rgbd data build`?"),
        (["xyzzy"], "choose from train, eval, plan"),
        (["train", "--config=demo"], "--workdir"),
        (["fuse", "a", "b", "--weight_s", "1,2"], "unrecognized arguments: --weight_s 1,2"),
        (["fuse", "a", "b", "--config.seed=1"], "unrecognized arguments: --config.seed=1"),
    ],
)
def test_a_wrong_command_or_argument_is_an_error_with_a_hint(refused, arguments, message):
    refused(arguments, message)


def test_a_module_that_is_no_command_is_an_error_with_a_hint():
    command = [sys.executable, "-m", "rgbd_jax.tools.fuse"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "is not a command; did you mean `python -m rgbd_jax fuse`?" in finished.stderr


def test_a_request_to_stop_while_packages_are_imported_has_the_status_of_a_preemption(tmp_path):
    script = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'jax': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('rgbd_jax.main', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", script, "--config", "configs/demo.py", "--workdir", tmp_path / "run"]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == os.EX_TEMPFAIL


@pytest.mark.parametrize("command", ["", "data", *cli.COMMANDS])
def test_help_lists_the_commands_and_shows_an_example_of_each(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    if command in cli.COMMANDS:
        assert f"rgbd {command}" in shown.split("options:")[0].split("usage:")[1]
    else:
        assert all(f"\n  {name} " in shown for name in cli.COMMANDS)
