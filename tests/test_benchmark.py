"""The benchmark script on a small network: what it measures, what it refuses."""

import json
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
SMALL = ("--config=configs/demo.py", "--batch=2", "--repeats=2", *(f"--config.{field}" for field in FIELDS))
# A checkout that imports what need not be installed, and whose network has none of ours' weights.
OTHER_NETWORK = """
import torch, visdom
from torchvision import transforms
class DSNNet(torch.nn.Linear):
    def __init__(self, settings, num_classes): super().__init__(settings.w, num_classes)
"""
# A data set class that reads the frames it is given, by the names of colour or depth, and lists what it has read.
OTHER_LOADER = """
import pathlib
import numpy as np
from PIL import Image
from torchvision import transforms
class Datasets:
    def __init__(self, settings, clips, modality, phase):
        self.inputs = [(path, int(count), int(label)) for path, count, label in map(str.split, open(clips))]
        self.dataset_root, self.settings = settings.data, settings
    def __len__(self): return len(self.inputs)
    def get_sl(self, count): return range(count)
    def image_propose(self, path, numbers):
        files = [pathlib.Path(path, f"{i:06d}.jpg") for i in numbers]
        files = [f if f.exists() else pathlib.Path(path, f"MDepth-{i + 1:08d}.png") for i, f in enumerate(files)]
        frames = [np.array(Image.open(f)) for f in files]
        kinds = {(frame.ndim, frame.dtype.name) for frame in frames}
        tensor = transforms.Compose([transforms.ToTensor(), transforms.Grayscale(1)])(np.ones((2, 2, 3)))
        raise SystemExit(f"{kinds} {list(tensor.shape)} {self.settings.resize} {self.settings.w}")
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


@pytest.mark.optional
@pytest.mark.parametrize(("modality", "kind"), [("rgb", "(3, 'uint8')"), ("depth", "(2, 'uint16')")])
def test_the_loader_of_the_reference_reads_the_same_clips(small_demo, tmp_path, modality, kind):
    pytest.importorskip("torch")
    for name, text in {"lib/model/DSN.py": "", "lib/datasets/base.py": OTHER_LOADER}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    fields = f"--config.data.data_dir={small_demo}", f"--config.modality={modality}"
    finished = benchmark("loader", *SMALL, *fields, f"--reference={tmp_path}")
    assert f"{{{kind}}} [1, 2, 2] (72, 72) 4" in finished.stderr, finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--reference=/nowhere"], "no checkout of the reference, lib/model/DSN.py is not there"),
        (["loader", "train"], "measure them in a run of their own"),
        (["train", "--colour=red"], "unexpected arguments: --colour=red"),
        (["compiled", "train"], "compiled is a run of its own: give it alone"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    refused = benchmark(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not refused.stdout


def test_cases_of_the_compiled_benchmark():
    cases = compiled.cases("all", "configs/demo.py", [])
    assert len(cases) == 2 * 2 * 2 * 4
    assert len({key for key, _ in cases.values()}) == 32
    assert list(compiled.cases("rgb train bfloat16 v5e", "configs/demo.py", [])) == [
        "demo rgb, train, bfloat16, v5e 2x2, 1 clip",
        "demo rgb, train, bfloat16, v5e 2x2, 4 clips",
    ]
    changed = compiled.cases("all", "configs/demo.py:depth", ["--config.remat.stem=all"])
    assert list(changed) == list(cases)
    assert {key for key, _ in changed.values()}.isdisjoint(key for key, _ in cases.values())
    assert len(compiled.cases("small", "configs/demo.py", [])) == 2 * 4
    with pytest.raises(ValueError, match=r"--cases='v9': expected all, small, or words of some of these: demo rgb"):
        compiled.cases("v9", "configs/demo.py", [])


def test_estimates_are_written_case_by_case_and_resumed(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "check_installed", lambda target: None)
    out, asked = tmp_path / "out.json", []

    def case(name, error=None):
        def estimate():
            asked.append(name)
            if error:
                raise error
            return {"temp_bytes": 2 * len(asked), "kernels": 3, "device": "x", "stages": {"stem, forward": 1 / 3}}

        return "key", estimate

    with pytest.raises(MemoryError):
        compiled.measure({"a": case("a"), "b": case("b", MemoryError())}, out)
    assert compiled.read(out) == {
        "a": {"key": "key", "temp_bytes": 2, "kernels": 3, "stages": {"stem, forward": 0.33333}}
    }
    rows = compiled.measure({"a": case("a"), "b": case("b")}, out)
    assert asked == ["a", "b", "b"]
    assert rows == compiled.read(out)
    assert list(compiled.measure({"b": ("another", case("b")[1])}, out)) == ["b"]
    assert [row["temp_bytes"] for row in compiled.read(out).values()] == [2, 8]
    assert compiled.table(rows).splitlines()[1:] == ["a  3 kernels, 2 temp_bytes", "b  3 kernels, 6 temp_bytes"]
    for text in ("{", "[]", '{"a": 1}'):
        out.write_text(text)
        with pytest.raises(ValueError, match=r"out\.json: not a file of this benchmark"):
            compiled.read(out)


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


def test_compilers_that_are_not_installed_are_named():
    if installed_version("libtpu"):
        pytest.skip("they are installed")
    refused = benchmark("compiled", "--cases=small")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: --device_kind=v5e: its compiler is not installed (libtpu): run")


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
