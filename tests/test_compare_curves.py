"""How far two runs lie apart, told from their figures."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LINES = [
    {"step": 1, "kind": "train", "loss": 4.0, "top1": 0.0, "clips_per_second": 10.0},
    {"step": 2, "kind": "train", "loss": 2.0, "top1": 0.5, "clips_per_second": 12.0},
    {"step": 2, "kind": "validation", "loss": 3.0, "top1": 0.25},
]


def compare(tmp_path, change=lambda lines: None, tolerance="1e-4"):
    for name in ("one", "other"):
        lines = [dict(line) for line in LINES]
        if name == "other":
            change(lines)
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, ROOT / "scripts/compare_curves.py", tmp_path / "one", tmp_path / "other"]
    return subprocess.run([*command, "--tolerance", tolerance], capture_output=True, text=True, check=False)


def test_the_clock_does_not_count(tmp_path):
    done = compare(tmp_path, lambda lines: lines[0].update(clips_per_second=99.0), tolerance="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("3 lines, within 0: all of them\n")


@pytest.mark.parametrize(
    ("tolerance", "status", "told"), [("0.03", 0, "all of them"), ("0.01", 1, "those before step 2")]
)
def test_the_largest_difference_is_told_with_its_step(tmp_path, tolerance, status, told):
    done = compare(tmp_path, lambda lines: lines[1].update(loss=2.05), tolerance)
    assert done.returncode == status
    rows = [line.rsplit(None, 2)[0] for line in done.stdout.splitlines()[1:-1]]
    assert rows == ["train loss", "train top1", "validation loss", "validation top1"]
    assert "train loss                               0.0244        2\n" in done.stdout
    assert done.stdout.endswith(f"3 lines, within {tolerance}: {told}\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: lines.pop(), "error: only one of them has a line of validation figures at step 2\n"),
        (lambda lines: lines[0].pop("top1"), "error: at step 1 the runs have other train figures: ['loss', 'top1']\n"),
    ],
)
def test_runs_with_other_figures_cannot_be_compared(tmp_path, change, told):
    done = compare(tmp_path, change)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


def test_a_loss_that_is_not_a_number_is_no_agreement(tmp_path):
    done = compare(tmp_path, lambda lines: lines[1].update(loss=float("nan")), tolerance="1")
    assert done.returncode == 1
    assert "inf" in done.stdout


def test_a_folder_without_figures_is_named(tmp_path):
    command = [sys.executable, ROOT / "scripts/compare_curves.py", tmp_path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path}/metrics.jsonl does not exist; expected the folder of a run\n",
    )
