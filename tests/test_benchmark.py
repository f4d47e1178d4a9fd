"""The benchmark script on a small network: what it measures, what it refuses."""

import json
import subprocess
import sys

import pytest

from benchmarking.ours import BLOCKS, block_of
from benchmarking.sides import seconds_in_turn, spread
from tests.conftest import ROOT

FIELDS = ("clip.frames=12", "clip.size=32", "model.width=0.125", "model.branch_frames=(3, 6, 9)")
SMALL = ("--config=configs/demo.py", "--batch=2", "--repeats=2", *(f"--config.{field}" for field in FIELDS))
# A checkout that imports what need not be installed, and whose network has none of ours' weights.
OTHER_NETWORK = """
import torch, visdom
from torchvision import transforms
class DSNNet(torch.nn.Linear):
    def __init__(self, settings, num_classes): super().__init__(settings.w, num_classes)
"""


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


@pytest.mark.parametrize(
    ("scope", "block"),
    [
        ("jit(train_step)/jvp(stem)/conv_general_dilated", "stem, forward"),
        ("jit(train_step)/transpose(jvp(mixed_3b))/cond/branch_0_fun/while/body/dot_general", "mixed_3b, backward"),
        ("jit(train_step)/optimizer/mul", "optimizer, forward"),
        ("jit(train_step)/jvp()/add", "other, forward"),
    ],
)
def test_an_operation_belongs_to_the_block_that_its_scope_names(scope, block):
    assert block_of(scope) == block


@pytest.mark.slow
def test_training_step_its_blocks_and_inference():
    finished = benchmark("train", "profile", "infer", *SMALL, "--json")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["rows"]
    for part in ("train", "infer"):
        row = rows.pop(part)
        assert len(row["seconds"]["ours"]) == 2
        assert row["peak_bytes"]["ours"] > 1e6
    both_ways = [name for name in BLOCKS if name not in ("inputs", "optimizer", "other")]
    expected = [f"{name}, {way}" for name in both_ways for way in ("forward", "backward")]
    assert {"inputs, forward", "optimizer, forward", *expected} <= set(rows)
    assert all(value > 0 for row in rows.values() for value in row["seconds"]["ours"])


def test_loading_and_heat_maps_of_prepared_clips(small_demo):
    finished = benchmark("loader", "heatmap", *SMALL, f"--config.data.data_dir={small_demo}")
    assert finished.returncode == 0, finished.stderr
    assert [line.split(",")[0] for line in finished.stdout.splitlines()[2:]] == ["loader", "heatmap"]
    assert finished.stdout.count("clips/s") == 2


@pytest.mark.optional
def test_another_network_as_reference_is_refused(tmp_path):
    pytest.importorskip("torch")
    for name, text in {"lib/model/DSN.py": OTHER_NETWORK, "lib/model/DTN.py": "", "utils/build.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "utils/build.py").write_text("import torch\nLabelSmoothingCrossEntropy = torch.nn.CrossEntropyLoss\n")
    refused = benchmark("infer", *SMALL, f"--reference={tmp_path}")
    assert refused.returncode == 1
    assert f"error: {tmp_path} is another network: missing ['weight', 'bias']" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--reference=/nowhere"], "no checkout of the reference, lib/model/DSN.py is not there"),
        (["loader", "train"], "measure them in a run of their own"),
        (["train", "--colour=red"], "unexpected arguments: --colour=red"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    refused = benchmark(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not refused.stdout
