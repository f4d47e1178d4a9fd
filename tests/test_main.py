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


def run(*arguments, config="configs/demo.py"):
    command = [sys.executable, "-m", "rgbd_jax.main", "--config", config, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def assert_refused(finished, *messages):
    assert finished.returncode != 0
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    for text in messages:
        assert text in finished.stderr


def test_train_and_evaluate_end_with_one_json_line(small_demo, tmp_path):
    overrides = [f"--config.{flag}" for flag in (*TINY, f"data.data_dir={small_demo}")]
    results = []
    for mode in ("train", "eval"):
        finished = run(f"--mode={mode}", "--workdir", tmp_path / "run", *overrides)
        assert finished.returncode == 0, finished.stderr
        results.append(json.loads(finished.stdout.splitlines()[-1]))
    trained, evaluated = results
    assert (trained["mode"], evaluated["mode"]) == ("train", "eval")
    for name in evaluated.keys() - {"mode", "workdir", "seconds"}:
        assert evaluated[name] == pytest.approx(trained[name], rel=1e-5), name
    assert {"workdir", "step", "clips", "top1", "top5", "reference_protocol", "mean_per_class"} <= evaluated.keys()


def test_invalid_arguments_are_named_and_nothing_is_written(tmp_path):
    workdir = tmp_path / "run"
    assert_refused(run(), "--workdir")
    assert_refused(run("--workdir", workdir, "--config.model.widht=2"), "widht", 'Did you mean "width"')
    assert_refused(run("--workdir", workdir, config="configs/nothing.py"), "configs/nothing.py")
    assert_refused(run("--workdir", workdir, config="configs/demo.py:audio"), "config.modality='audio'")
    assert_refused(run("--workdir", workdir, "--mode=eval"), str(workdir), "holds no run")
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("module", "command"),
    [("rgbd_jax.train", "train"), ("rgbd_jax.evaluation", "eval"), ("rgbd_jax.tools.fuse", "fuse")],
)
def test_a_module_that_is_no_command_is_an_error_with_a_hint(module, command):
    finished = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert_refused(finished, f"error: {module} is not a command", f"did you mean `python -m rgbd_jax {command}`?")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (["trian"], "did you mean `rgbd train`?"),
        (["check"], "did you mean `rgbd data check`?"),
        (["data", "biuld"], "did you mean `rgbd data build`?"),
        (["xyzzy"], "choose from train, eval, plan"),
    ],
)
def test_a_wrong_command_is_an_error_with_a_hint(wrong, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(wrong)
    assert stopped.value.code == 2
    assert hint in capsys.readouterr().err


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


def test_data_that_are_not_there(tmp_path):
    workdir, absent = tmp_path / "run", tmp_path / "absent"
    finished = run("--workdir", workdir, f"--config.data.data_dir={absent}", config="configs/folder.py")
    assert_refused(finished, str(absent), "data build")
    finished = run("--workdir", workdir, f"--config.data.raw_dir={absent}", config="configs/folder.py")
    assert_refused(finished, f"{absent}: no such folder")
    assert not workdir.exists()


def test_faulty_clips_stop_before_anything_is_written(tmp_path):
    raw, data_dir = tmp_path / "raw", tmp_path / "data"
    (raw / "rgb" / "wave").mkdir(parents=True)
    (raw / "rgb" / "wave" / "000000.jpg").write_bytes(b"not an image")
    for split in ("train", "validation"):
        (raw / f"{split}.txt").write_text("wave 1 0\nwave two 1\n")
    overrides = [f"--config.data.raw_dir={raw}", f"--config.data.data_dir={data_dir}"]
    finished = run("--workdir", tmp_path / "run", *overrides, config="configs/folder.py")
    assert_refused(finished, f"{raw / 'train.txt'}:2", f"{raw / 'validation.txt'}:2")
    assert not (tmp_path / "run").exists()
    assert not list(data_dir.rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("train.batch_size=49", ("48 clips", "batch of 49")),
        ("data.eval_split=test", ("test", "train, validation")),
        ("model.num_classes=5", ("config.model.num_classes=5", "12 classes")),
    ],
)
def test_a_config_that_the_data_do_not_fit(small_demo, tmp_path, override, messages):
    data_dir = f"--config.data.data_dir={small_demo}"
    assert_refused(run("--workdir", tmp_path / "run", data_dir, f"--config.{override}"), *messages)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["tarin"], ("'tarin'", "did you mean `rgbd train`?")),
        (["fuse", "a", "b", "--weight_s", "1,2"], ("unrecognized arguments: --weight_s 1,2",)),
        (["fuse", "a", "b", "--config.seed=1"], ("unrecognized arguments: --config.seed=1",)),
    ],
)
def test_wrong_commands_and_arguments_are_errors_with_a_hint(arguments, messages, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert all(message in shown for message in messages)


def test_commands_are_listed():
    done = subprocess.run([sys.executable, "-m", "rgbd_jax", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in cli.COMMANDS)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "--help"])
    assert not stopped.value.code


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert f"rgbd {command}" in shown
    assert "rgbd" in shown.split("options:")[0].split("usage:")[1]
