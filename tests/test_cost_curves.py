"""The table of what a clip costs, from points that are measured, and what is said where some are missing."""

import json
import subprocess
import sys

from tests.conftest import ROOT


def run(*arguments):
    command = [sys.executable, ROOT / "scripts/cost_curves.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_table_holds_the_points_in_order(tmp_path):
    points = json.loads((ROOT / "docs/cost.json").read_text())
    for number, point in enumerate(points.values()):
        point["train"] |= {"seconds": 10.0 + number, "bytes": 1e9 * (100 + number)}
        point["infer"] |= {"seconds": 0.5, "bytes": 2.5e8}
    (tmp_path / "points.json").write_text(json.dumps(points))
    done = run("--out", tmp_path / "points.json", "--most=0")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows if len(row) > 1 and "**" not in row[0]] == [
        *("16", "32", "64", "128"), *("112", "160", "224", "320"), *("1", "2", "4", "8", "16"), *("1", "2", "4", "8")
    ]  # fmt: skip
    names = list(points)
    for name, place in (("frames=64,size=112,batch=2,devices=1", 3), ("frames=32,size=112,batch=16,devices=8", -1)):
        number = names.index(name)
        growing = name.split(",")[0 if place == 3 else -1].split("=")[1]
        assert rows[place] == [growing, f"{10 + number}", f"{100 + number}", "0.5", "0.25"]


def test_missing_points_are_counted(tmp_path):
    points = json.loads((ROOT / "docs/cost.json").read_text())
    del points["frames=32,size=112,batch=8,devices=1"]
    (tmp_path / "points.json").write_text(json.dumps(points))
    done = run("--out", tmp_path / "points.json", "--most=0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "1 points are left to measure: run the same command again\n"
