"""The scripts that compare the curves of two runs and that tabulate what a clip costs."""

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


def run(script, *arguments):
    command = [sys.executable, ROOT / "scripts" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def compare(tmp_path, tolerance, change):
    lines = [dict(line) for line in LINES]
    change(*lines)
    for name, written in (("one", LINES), ("other", lines)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    return run("compare_curves.py", tmp_path / "one", tmp_path / "other", "--tolerance", tolerance)


@pytest.mark.parametrize(("tolerance", "status", "text"), [("0.03", 0, "all"), ("0.01", 1, "those before step 2")])
def test_largest_differences_with_their_steps(tmp_path, tolerance, status, text):
    def change(first, second, _):
        first["clips_per_second"], second["loss"] = 99, 2.05

    done = compare(tmp_path, tolerance, change)
    assert (done.returncode, done.stderr) == (status, "")
    rows = [line.rsplit(None, 2)[0] for line in done.stdout.splitlines()[1:-1]]
    assert rows == ["train loss", "train top1", "validation loss", "validation top1"]  # not those of the clock
    assert "train loss                               0.0244        2\n" in done.stdout
    assert done.stdout.endswith(f"6 values within {tolerance}: {text}\n")


def test_a_loss_that_is_not_a_number_is_no_agreement(tmp_path):
    done = compare(tmp_path, "1", lambda _, second, __: second.update(loss=None))
    assert (done.returncode, "inf" in done.stdout) == (1, True)
