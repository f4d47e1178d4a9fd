"""The benchmark script on a small network: what it prints, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarking.blocks import BLOCKS, block_of
from benchmarking.in_turn import ratio, seconds_in_turn, spread

ROOT = Path(__file__).parents[1]

SMALL = [
    "--config=configs/demo.py",
    "--batch=2",
    "--frames=12",
    "--size=32",
    "--repeats=2",
    "--config.model.width=0.125",
]


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/benchmark.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_sides_take_turns_and_the_warm_up_is_not_counted():
    order = []

    def side(name, seconds):
        def run():
            order.append(name)
            return seconds[order.count(name) - 1]

        return run

    sides = {"ours": side("ours", [9.0, 1.0, 3.0, 2.0]), "other": side("other", [9.0, 4.0, 6.0, 5.0])}
    seconds = seconds_in_turn(sides, repeats=3)
    assert order == ["ours", "other"] * 4
    assert seconds == {"ours": [1.0, 3.0, 2.0], "other": [4.0, 6.0, 5.0]}
    assert ratio(seconds["other"], seconds["ours"]) == 2.5
    assert spread(seconds["ours"]) == "2.0 (1.0-3.0)"


@pytest.mark.parametrize(
    ("scope", "block"),
    [
        ("jit(train_step)/jvp(stem)/conv_general_dilated", "stem, forward"),
        ("jit(train_step)/transpose(jvp(mixed_3b))/cond/branch_0_fun/while/body/dot_general", "mixed_3b, backward"),
        ("jit(train_step)/optimizer/mul", "optimizer, forward"),
        ("jit(train_step)/jvp()/add", "other"),
        ("", "other"),
    ],
)
def test_an_operation_belongs_to_the_block_that_its_scope_names(scope, block):
    assert block_of(scope) == block


@pytest.mark.slow
def test_figures_of_the_training_step_its_blocks_and_the_inference():
    finished = benchmark("train", "profile", "infer", *SMALL, "--json")
    assert finished.returncode == 0, finished.stderr
    measured = json.loads(finished.stdout)
    assert measured["machine"]["flops"] > 1e8
    rows = measured["rows"]
    for part in ("train", "infer"):
        assert len(rows[part]["seconds"]["ours"]) == 2
        assert rows[part]["peak_bytes"]["ours"] > rows[part]["allotted_bytes"] > 0
    assert 2.5 < rows["train"]["flops"] / rows["infer"]["flops"] < 3
    blocks = {name: row["seconds"]["ours"] for name, row in rows.items() if name not in ("train", "infer")}
    both_ways = [name for name in BLOCKS if name not in ("inputs", "optimizer")]
    expected = [f"{name}, {way}" for name in both_ways for way in ("forward", "backward")]
    assert {"inputs, forward", "optimizer, forward", *expected} <= set(blocks)
    assert all(value > 0 for seconds in blocks.values() for value in seconds)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--reference=/nowhere"], "no checkout of the reference, lib/model/DSN.py is not there"),
        (["loader", "train"], "measure them in a run of their own"),
        (["train", "--colour=red"], "unexpected arguments: --colour=red"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, said):
    refused = benchmark(*arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not refused.stdout
