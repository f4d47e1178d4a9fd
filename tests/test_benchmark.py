"""The benchmark script on a small network: what it measures, what it refuses."""

import json
import runpy
import subprocess
import sys
import time

import pytest

from benchmarking import compiled
from benchmarking.measured import measure_steps
from benchmarking.sides import seconds_in_turn, spread
from rgbd_jax.tools.plan.stages import STAGES
from rgbd_jax.tools.plan.targets import installed_version
from tests.conftest import ROOT

FIELDS = ("clip.frames=12", "clip.size=32", "model.width=0.125", "model.branch_frames=(3, 6, 9)")
BESIDE = "train_beside.py --reference=/nowhere --workdir=/nowhere"
SMALL = ("--config=configs/demo.py", "--batch=2", "--repeats=2", *(f"--config.{field}" for field in FIELDS))


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/benchmark.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_sides_take_turns_and_the_warm_up_is_not_counted():
    order = []
    times = {"ours": iter([9.0, 1.0, 3.0, 2.0]), "other": iter([9.0, 4.0, 6.0, 5.0])}
    sides = {name: lambda name=name: (order.append(name), next(times[name]))[1] for name in times}
    seconds = seconds_in_turn(sides, repeats=3)
    assert order == ["ours", "other"] * 4
    assert seconds == {"ours": [1.0, 3.0, 2.0], "other": [4.0, 6.0, 5.0]}
    assert spread(seconds["ours"]) == "2.0 (1.0-3.0)"


@pytest.mark.slow
def test_a_device_is_measured_beside_its_estimates():
    finished = benchmark("device", *SMALL, "--minutes=0", "--json")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["rows"]
    for modality in ("rgb", "depth"):
        assert len(rows.pop(f"loader, {modality}, one core")["seconds"]["ours"]) == 2
    for part in ("train", "eval", "infer"):
        row = rows.pop(f"{part}, batch of 1")
        assert len(row["seconds"]["ours"]) == 2
        assert row["peak_bytes"]["ours"] > 1e6
        assert row["estimates"]["total_bytes"] > 1e5
    both_ways = [name for name in STAGES if name not in ("inputs", "branch_transformers", "optimizer", "other")]
    expected = [f"{name}, {way}" for name in both_ways for way in ("forward", "backward")]
    assert {f"{row}, batch of 1" for row in ("inputs, forward", "optimizer, forward", *expected)} <= set(rows)
    assert all(value > 0 for row in rows.values() for value in row["seconds"]["ours"])
    assert finished.stderr.endswith("a larger batch would take too long\n")


@pytest.mark.parametrize(
    ("minutes", "error", "found"), [(9, "RESOURCE_EXHAUSTED: too large", [1, 2, 4]), (9, "cannot", None), (0, "", [1])]
)
def test_batches_grow_until_one_does_not_fit_or_time_is_up(minutes, error, found):
    def measure(sides, clips):
        if clips > 4:
            raise RuntimeError(error)
        return {"train": {"clips": clips}}

    arguments = lambda stack, clips: {}, measure, time.monotonic() + 60 * minutes
    if found is None:
        with pytest.raises(RuntimeError, match="cannot"):
            measure_steps(*arguments)
    else:
        rows = measure_steps(*arguments)
        assert rows == {f"train, batch of {clips}": {"clips": clips} for clips in found}


def test_loading_and_heat_maps_of_prepared_clips(small_demo):
    finished = benchmark("loader", "heatmap", *SMALL, f"--config.data.data_dir={small_demo}")
    assert finished.returncode == 0, finished.stderr
    assert [line.split(",")[0] for line in finished.stdout.splitlines()[2:]] == ["loader", "heatmap"]
    assert finished.stdout.count("clips/s") == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("benchmark.py fly", "invalid choice: 'fly'"),
        ("benchmark.py train --reference=/nowhere", "no checkout of the reference, lib/model/DSN.py is not there"),
        ("benchmark.py loader train", "measure them in a run of their own"),
        ("benchmark.py train --colour=red", "unexpected arguments: --colour=red"),
        ("benchmark.py compiled train", "compiled is a run of its own: give it alone"),
        (f"{BESIDE} --modalities depth fusion", "fusion starts from rgb and depth: give all three"),
        (f"{BESIDE} --colour=red", "unexpected arguments: --colour=red"),
        (BESIDE, "--reference=/nowhere: no checkout of the reference"),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, capsys, command, message):
    script, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert message in printed.err


def test_what_changed_and_what_got_worse():
    sent = [{"kind": "all-reduce", "number": 57, "bytes": 100}]
    before = {"key": "1", "kernels": 100, "temp_bytes": 1000, "stages": {"stem, forward": 2.0}, "collectives": sent}
    hidden = {"uncounted": [{"kind": "pad", "number": 4, "bytes": 2 * 10**8}]}
    after = {
        "a": {**before, "key": "2", "kernels": 105, "temp_bytes": 900},
        "b": {**before, "kernels": 106, "stages": {"stem, forward": {"bound_ms_per_clip": 3.0}}, "collectives": []},
        "c": {"key": "3"},
        "d": before,
        "e": {**before, **hidden},
        "new": before,
    }
    rows = {**dict.fromkeys("abcd", before), "e": {**before, "uncounted": []}}
    changes = compiled.changes(rows, after)
    for line in (
        "a: kernels 100 -> 105 (+5.0%)",
        "a: temp_bytes 1,000 -> 900 (-10.0%)",
        "b: stem, forward 2 -> 3 (+50.0%)",
        "b: all-reduce, number 57 -> 0 (-100.0%)",
        "e: uncounted_megabytes 0 -> 200",
        "new: new",
    ):
        assert line in changes
    assert not [line for line in changes if line.startswith("d")]
    assert compiled.regressions(rows, after) == [
        "b: kernels 100 -> 106",
        "c: kernels 100 -> does not fit",
        "c: temp_bytes 1,000 -> does not fit",
        "e: uncounted_megabytes 0 -> 200",
    ]


@pytest.mark.optional
def test_blocks_are_no_slower_on_accelerators():
    """Estimates of compilers do not vary: more than 5 % above the file is a regression."""
    if any(installed_version(name) is None for name in (*compiled.TPU.packages, *compiled.GPU.packages)):
        pytest.skip("the compilers are not installed: ./scripts/setup.sh plan")
    file = ROOT / "tests" / "compiled_small.json"
    rows = compiled.measure(compiled.cases("small", "configs/ntu_cs.py", []), None)
    update = "python scripts/benchmark.py compiled --cases small --out tests/compiled_small.json"
    before = compiled.read(file)
    assert rows.keys() == before.keys()
    assert not compiled.regressions(before, rows), f"after a change that must cost this much: {update}"
