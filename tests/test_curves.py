"""The script that compares the curves of two runs."""

import json
import sys

import pytest

import compare_curves

LINES = [
    {"step": 1, "kind": "train", "loss": 4.0, "top1": 0.0, "clips_per_second": 10.0},
    {"step": 2, "kind": "train", "loss": 2.0, "top1": 0.5, "clips_per_second": 12.0},
    {"step": 2, "kind": "validation", "loss": 3.0, "top1": 0.25},
]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        """Returns the exit status, or the message of an error, and what is printed."""
        monkeypatch.setattr(sys, "argv", ["compare_curves.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            compare_curves.main()
        return ended.value.code, capsys.readouterr().out

    return run


def compare(run, tmp_path, tolerance, change):
    lines = [dict(line) for line in LINES]
    change(*lines)
    for name, written in (("one", LINES), ("other", lines)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    return run(tmp_path / "one", tmp_path / "other", "--tolerance", tolerance)


@pytest.mark.parametrize(("tolerance", "status", "text"), [("0.03", 0, "all"), ("0.01", 1, "those before step 2")])
def test_largest_differences_with_their_steps(run, tmp_path, tolerance, status, text):
    def change(first, second, _):
        first["clips_per_second"], second["loss"] = 99, 2.05

    found, printed = compare(run, tmp_path, tolerance, change)
    assert found == status
    rows = [line.rsplit(None, 2)[0] for line in printed.splitlines()[1:-1]]
    assert rows == ["train loss", "train top1", "validation loss", "validation top1"]  # not those of the clock
    assert "train loss                               0.0244        2\n" in printed
    assert printed.endswith(f"6 values within {tolerance}: {text}\n")


def test_a_loss_that_is_not_a_number_is_no_agreement(run, tmp_path):
    status, printed = compare(run, tmp_path, "1", lambda _, second, __: second.update(loss=None))
    assert (status, "inf" in printed) == (1, True)


def test_runs_that_cannot_be_compared(run, tmp_path):
    found = compare(run, tmp_path, "1", lambda first, *_: first.pop("top1"))
    assert found == ("error: only one of the runs has train top1 at step 1", "")
    assert run(tmp_path, tmp_path) == (
        f"error: {tmp_path}/metrics.jsonl does not exist; expected the folder of a run",
        "",
    )
