"""The command line as a user meets it: results, and errors for wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rgbd_jax import cli
from rgbd_jax.cli import COMMANDS
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
TINY = (
    "clip.frames=8",
    "clip.size=32",
    "model.width=0.125",
    "model.branch_frames=(2, 4, 6)",
    "model.temporal_blocks=1",
    "model.recoupling_hidden=16",
    "train.batch_size=16",
    "train.epochs=2",
    "train.log_every_steps=1",
    "schedule.warm_up_epochs=0",
    "eval.batch_size=16",
)


def run(*arguments, config="configs/demo.py"):
    command = [sys.executable, "-m", "rgbd_jax.main", "--config", config, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def assert_refused(finished, *messages):
    assert finished.returncode != 0
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    for text in messages:
        assert text in finished.stderr


def test_flags_of_this_file_make_the_tiny_config():
    config = tiny_config("unused")
    for flag in TINY:
        name, value = flag.split("=")
        field = config
        for part in name.split("."):
            field = field[part]
        assert str(field) == value


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


def test_unknown_field_is_named(tmp_path):
    assert_refused(run("--workdir", tmp_path / "run", "--config.model.widht=2"), "widht", 'Did you mean "width"')
    assert not (tmp_path / "run").exists()


def test_missing_workdir_config_and_modality(tmp_path):
    assert_refused(run(), "--workdir")
    assert_refused(run("--workdir", tmp_path / "run", config="configs/nothing.py"), "configs/nothing.py")
    assert_refused(run("--workdir", tmp_path / "run", config="configs/demo.py:audio"), "config.modality='audio'")
    assert not (tmp_path / "run").exists()


def test_evaluation_needs_a_run(tmp_path):
    assert_refused(run("--workdir", tmp_path / "run", "--mode=eval"), str(tmp_path / "run"), "holds no run")


def test_data_that_are_not_there(tmp_path):
    folder = {"config": "configs/folder.py"}
    absent = tmp_path / "absent"
    assert_refused(
        run("--workdir", tmp_path / "run", f"--config.data.data_dir={absent}", **folder),
        str(absent),
        "data build",
    )
    assert_refused(
        run("--workdir", tmp_path / "run", f"--config.data.raw_dir={absent}", **folder), f"{absent}: no such folder"
    )
    assert not (tmp_path / "run").exists()


def test_faulty_clips_stop_before_anything_is_written(tmp_path):
    raw = tmp_path / "raw"
    (raw / "rgb" / "wave").mkdir(parents=True)
    (raw / "rgb" / "wave" / "000000.jpg").write_bytes(b"not an image")
    for split in ("train", "validation"):
        (raw / f"{split}.txt").write_text("wave 1 0\nwave two 1\n")
    finished = run(
        "--workdir",
        tmp_path / "run",
        f"--config.data.raw_dir={raw}",
        f"--config.data.data_dir={tmp_path / 'data'}",
        config="configs/folder.py",
    )
    assert_refused(finished, f"{raw / 'train.txt'}:2", f"{raw / 'validation.txt'}:2")
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_split_that_the_data_lack_and_batch_that_does_not_fit(small_demo, tmp_path):
    data_dir = f"--config.data.data_dir={small_demo}"
    finished = run("--workdir", tmp_path / "run", data_dir, "--config.train.batch_size=49")
    assert_refused(finished, "48 clips", "batch of 49")
    finished = run("--workdir", tmp_path / "run", data_dir, "--config.data.eval_split=test")
    assert_refused(finished, "test", "train, validation")
    finished = run("--workdir", tmp_path / "run", data_dir, "--config.model.num_classes=5")
    assert_refused(finished, "config.model.num_classes=5", "12 classes")
    assert not (tmp_path / "run").exists()


def test_commands_are_listed_and_a_wrong_one_is_an_error_with_a_hint():
    done = subprocess.run([sys.executable, "-m", "rgbd_jax", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    done = subprocess.run([sys.executable, "-m", "rgbd_jax", "tarin"], cwd=ROOT, capture_output=True, text=True)
    assert_refused(done, "'tarin'", "train, eval, plan")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert f"rgbd {command}" in shown
    assert "rgbd" in shown.split("options:")[0].split("usage:")[1]
