"""Training beside a stand-in for the reference: the files it is given, its settings, accuracies, table and picture."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train_beside as beside
from benchmarking.accuracies import table
from rgbd_jax.config import load_config
from rgbd_jax.data.frames import colour_depth, decode_frame
from rgbd_jax.data.source import open_split
from tests.conftest import ROOT

# A network and a training as the reference has them, that lists what it is given and knows every other clip.
CHECKOUT = {
    "lib/model/DTN.py": "import random\nclass RCMModule: pass",
    "lib/model/build.py": """
import torch
class DSNNet(torch.nn.Linear):
    def __init__(self, args, num_classes, pretrained):
        super().__init__(args.low_frames, num_classes)
        print("network", args.epochs, num_classes)
    def forward(self, known, heat): return (known, heat), 0, ()
""",
    "utils.py": "count_parameters_in_MB = None",
    "tools/train.py": """
import argparse, os, yaml, visdom
import numpy as np, torch, utils
from PIL import Image
parser = argparse.ArgumentParser()
for name in ("config", "save", "seed"): parser.add_argument(f"--{name}")
args = parser.parse_args()
vars(args).update(yaml.load(open(args.config), Loader=yaml.FullLoader)["all"])
class Clips(torch.utils.data.Dataset):
    def __init__(self, phase):
        name = f"depth_{phase}_lst" if args.type == "K" else phase
        self.lines = [line.split() for line in open(os.path.join(args.splits, f"{name}.txt"))]
    def __len__(self): return len(self.lines)
    def __getitem__(self, i):
        path, count, label = self.lines[i]
        names = sorted(os.listdir(os.path.join(args.data, path)))
        frames = [np.asarray(Image.open(os.path.join(args.data, path, name))) for name in names]
        print("clip", i, path, len(frames) == int(count), names[0], {frame.shape for frame in frames}, flush=True)
        return torch.eye(12)[int(label)] * (i % 2), torch.zeros(1), int(label), path
def infer(queue, model, criterion, rank, epoch): return 0.25 + 0.5 * epoch, 0, {}, {}, {}
def main(rank, nprocs, args):
    assert torch.cuda.is_available()
    torch.distributed.init_process_group(backend="nccl")
    model = torch.nn.parallel.DistributedDataParallel(build_model(args).cuda(rank), device_ids=[rank])
    print("training", len(Clips("train")), args.seed, args.epochs, args.learning_rate, args.resize, args.dataset)
    queue = torch.utils.data.DataLoader(Clips("valid"), args.test_batch_size)
    for epoch in range(args.epochs): infer(queue, model, None, rank, epoch)
    EvaluateMetric(train_results=utils.count_parameters_in_MB(model))
""",
}
# The same for UMDR, which evaluates before its training too, in per cent, and has a table of temperatures by epoch.
UMDR_CHECKOUT = {
    "timm/__init__.py": "",
    "sklearn/metrics.py": "",
    "utils.py": "",
    "lib/datasets/base.py": """
import os
class Datasets:
    def get_path(self, folder, number): return os.path.join(folder, "%06d.jpg" % number)
""",
    "lib/model/DTN_v2.py": """
import torch
class DTNNet(torch.nn.Linear):
    def __init__(self, args, classes):
        super().__init__(classes, classes)
        print("temperatures", args.epochs)
    def forward(self, known): return (known, known), ()
""",
    "lib/model/build.py": """
from . import DTN_v2
def build_model(args): return DTN_v2.DTNNet(args, args.num_classes)
""",
    "train.py": """
import argparse, os, yaml, torch, utils
import numpy as np
from PIL import Image
from lib.datasets.base import Datasets
from sklearn import metrics
build_model = None
def get_args_parser():
    parser = argparse.ArgumentParser()
    for name in ("config", "save", "seed"): parser.add_argument(f"--{name}")
    return parser
def Config(args):
    vars(args).update(yaml.load(open(args.config), Loader=yaml.FullLoader)["all"])
    return args
class Clips(Datasets):
    def __init__(self, phase):
        self.inputs = [tuple(line.split()) for line in open(os.path.join(args.splits, f"{phase}.txt"))]
        self.inputs.append(self.inputs[0])
    def __len__(self): return len(self.inputs)
    def __getitem__(self, i):
        path, count, label = self.inputs[i]
        frames = [np.asarray(Image.open(self.get_path(path, number))) for number in range(int(count))]
        print("clip", i, path, len(frames), flush=True)
        return torch.eye(12)[int(label)] * (i % 2), torch.ones(1), int(label), path
def infer(queue, model, criterion, rank, epoch, device): return 25 + 50 * epoch, 0, {}, {}, {}
def main(args):
    torch.distributed.init_process_group("nccl", init_method="env://", world_size=1, rank=int(os.environ["RANK"]))
    assert torch.cuda.is_available()
    model = build_model(args).to(torch.device(args.device))
    print("training", len(Clips("train")), args.lr, args.sched, args.opt, args.mixup, args.loss["name"], args.epochs)
    queue = torch.utils.data.DataLoader(Clips("valid"), int(1.5 * args.batch_size))
    for epoch in (0, *range(args.epochs)): infer(queue, model, None, 0, epoch, args.device)
""",
}
OURS = {"epochs": {"top1": [0.5, 0.6], "reference_protocol": [0.7, 0.65]}, "seconds": 120}
VARIANT = {"epochs": {"top1": [0.1, 0.2], "reference_protocol": [0.1, 0.25]}, "seconds": 120}


def run_script(*arguments):
    command = [sys.executable, "scripts/train_beside.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def write_checkout(folder, files):
    for name, text in files.items():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkout" / name).write_text(text)
    return folder / "checkout"


@pytest.mark.optional
def test_the_reference_trains_on_the_same_clips_and_is_compared(small_demo, tmp_path):
    pytest.importorskip("torch")
    checkout, workdir = write_checkout(tmp_path, CHECKOUT), tmp_path / "beside"
    for modality in ("rgb", "depth"):  # finished trainings, which are not repeated
        (workdir / modality).mkdir(parents=True)
        (workdir / modality / "ours_0.json").write_text(json.dumps(OURS))
        (workdir / modality / "seed=1_0.json").write_text(json.dumps(VARIANT))
    splits = "--config.data.train_split=train", "--config.data.eval_split=validation", "--config.eval.batch_size=23"
    epochs = "--config.train.epochs=2", "--config.schedule.warm_up_epochs=1", f"--config.data.data_dir={small_demo}"
    arguments = f"--reference={checkout}", f"--workdir={workdir}", "--modalities", "rgb", "depth", *splits, *epochs
    arguments += "--variants", "seed=1"
    done = run_script(*arguments, "--seeds=1", "--config.clip.frames=64")
    assert done.returncode == 0, done.stderr
    for modality, place, shapes in (("rgb", "RGB/RGB", "000000.jpg"), ("depth", "Depth/D", "MDepth-00000001.png")):
        log = (workdir / modality / "reference_0.log").read_text()
        assert "network 30 12" in log
        assert "training 48 0 2 0.01 (36, 36) THUREAD" in log
        for i in range(24):
            assert log.count(f"clip {i} {place}_valid_{i} True {shapes} {{(60, 80, 3)}}") == 2
        results = json.loads((workdir / modality / "reference_0.json").read_text())
        # Of the clips that it does not know it says class 0, which every twelfth, with an even number, has.
        assert results["epochs"] == {"top1": [14 / 24] * 2, "reference_protocol": [0.25, 0.75]}
    clip = open_split("rgbd_demo", small_demo, "validation")[5]
    settings = load_config("demo_reference:depth").data.depth
    image = pytest.importorskip("PIL.Image").open(workdir / "clips/Depth/D_valid_5/MDepth-00000003.png")
    expected = colour_depth(decode_frame(clip.frames["depth"][2], "depth"), settings)[..., :3]
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert (workdir / "clips/RGB/RGB_valid_5/000002.jpg").read_bytes() == clip.frames["rgb"][2]
    minutes = json.loads((workdir / "rgb" / "reference_0.json").read_text())["seconds"] / 60
    assert done.stdout.splitlines()[2:10] == [
        "| rgb, seeds | 1 | 1 | |",
        "| rgb, last epoch, each clip once, % | 60.0 | 58.3 | +1.7 |",
        "| rgb, last epoch, the reference's protocol, % | 65.0 | 75.0 | -10.0 |",
        "| rgb, last epoch, the protocol's excess, points | 5.0 | 16.7 | -11.7 |",
        "| rgb, best epoch, each clip once, % | 50.0 | 58.3 | -8.3 |",
        "| rgb, best epoch, the reference's protocol, % | 70.0 | 75.0 | -5.0 |",
        "| rgb, best epoch, the protocol's excess, points | 20.0 | 16.7 | +3.3 |",
        f"| rgb, minutes a seed | 2.0 | {minutes:.1f} | |",
    ]
    variant = done.stdout.splitlines()[18:21]
    assert variant[0] == "| | ours | seed=1 | ours - seed=1 |"
    assert variant[2] == "| rgb, seeds | 1 | 1 | |"
    assert "| depth, last epoch, each clip once, % | 60.0 | 20.0 | +40.0 |" in done.stdout
    assert "the reference's protocol" in (workdir / "curves.html").read_text()
    for file in workdir.glob("*/reference_0.log"):
        file.unlink()
    again = run_script(*arguments, "--seeds=1", "--config.clip.frames=64")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert not list(workdir.glob("*/*.log"))
    other = run_script(*arguments, "--seeds=1", "--config.clip.frames=32")
    assert other.returncode == 1
    assert f"error: {workdir}/rgb/config.json is of another config" in other.stderr


@pytest.mark.optional
def test_the_reference_of_umdr_trains_on_the_same_clips(small_demo, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    checkout, workdir = write_checkout(tmp_path, UMDR_CHECKOUT), tmp_path / "beside"
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    fields = ["--config.data.train_split=train", "--config.data.eval_split=validation", "--config.train.epochs=2"]
    fields += [f"--config.data.data_dir={small_demo}", "--config.schedule.warm_up_epochs=1", "--sides", "reference"]
    arguments = f"--reference={checkout}", f"--workdir={workdir}", "--config=umdr_demo_reference", *fields
    done = run_script(*arguments, "--seeds=1", "--modalities", "rgb", "depth")
    assert done.returncode == 0, done.stderr
    for modality, place in (("rgb", "RGB/RGB"), ("depth", "Depth/D")):
        log = (workdir / modality / "reference_0.log").read_text()
        assert "temperatures 30" in log
        assert "training 49 0.01 cosine sgd 0.0 CE 2" in log
        for i in range(1, 24):
            assert log.count(f"clip {i} {place}_valid_{i} ") == 2
        results = json.loads((workdir / modality / "reference_0.json").read_text())
        # A clip that fills the list up is not counted twice: it is the first one, which is of class 0.
        assert results["epochs"] == {"top1": [14 / 24] * 2, "reference_protocol": [0.25, 0.75]}


def test_variants_and_fusion_start_from_the_same_networks(small_demo, tmp_path, monkeypatch, capsys):
    commands = []

    def train(command, **_):
        commands.append(command)
        workdir = Path(next(x.removeprefix("--workdir=") for x in command if x.startswith("--workdir=")))
        workdir.mkdir()
        row = {"kind": "validation", "step": 1, "top1": 0.5, "reference_protocol": 0.75}
        (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(beside.subprocess, "run", train)
    fields = [f"--config.data.data_dir={small_demo}", "--config.eval.batch_size=24", "--seeds=1", "--sides", "ours"]
    fields += ["--config.data.train_split=train", "--config.data.eval_split=validation"]
    arguments = [f"--workdir={tmp_path}", *fields, "--modalities", "rgb", "depth", "fusion"]
    monkeypatch.setattr(sys, "argv", ["train_beside.py", *arguments, "--variants", "fusion.reference_layout=False"])
    beside.main()
    assert ["--config.fusion.reference_layout=False" in command for command in commands] == [False, True] * 3
    for command in commands[-2:]:
        starts = [
            f"--config.fusion.init_{modality}_from={tmp_path / modality / 'ours_0'}" for modality in ("rgb", "depth")
        ]
        assert command[-2:] == starts
    assert len({*commands[-2]} ^ {*commands[-1]}) == 3  # the workdirs and the field
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("| | ours | fusion.reference_layout=False |")  # no empty table
    assert "| fusion, last epoch, the protocol's excess, points | 25.0 | 25.0 | +0.0 |" in printed


def test_the_tables_of_the_guide_are_those_of_its_data():
    results = json.loads((ROOT / "docs" / "beside.json").read_text())
    others = {side for sides in results.values() for side in sides} - {"ours"}
    printed = [row for other in others for row in table(results, other).splitlines()]
    guide = (ROOT / "docs" / "from_pytorch.md").read_text()
    rows = re.findall(r"^\| (?:rgb|depth|fusion), .*\|$", guide, re.MULTILINE)
    assert len(rows) >= 9
    assert {*rows} <= {*printed}


def test_spread_and_interval_of_the_difference():
    def run(accuracy, seconds):
        return {"epochs": {"top1": [0.1, accuracy], "reference_protocol": [0.1, accuracy]}, "seconds": seconds}

    ours, theirs = [run(0.5, 60), run(0.6, None)], [run(0.7, 90), run(0.8, 150)]
    rows = table({"depth": {"ours": ours, "reference": theirs}}, "reference").splitlines()[3:]
    # Welch's interval of two samples of standard deviation 5 sqrt(2): 4.303 (t of 2 degrees of freedom) times sqrt(50).
    assert rows[0] == "| depth, last epoch, each clip once, % | 55.0 ± 7.1 | 75.0 ± 7.1 | -20.0 (-50.4 to +10.4) |"
    assert rows[-1] == "| depth, minutes a seed | 1.0 | 2.0 ± 0.7 | |"


def test_configs_that_the_reference_does_not_have_are_refused(small_demo, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").touch()
    fields = f"--config.data.data_dir={small_demo}", "--config.clip.size=48"
    refused = run_script(f"--reference={tmp_path}", f"--workdir={tmp_path}", "--config=demo", *fields)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        "error: the reference cannot train with this config:\n  config.model.width=0.25: the reference has 1.0\n"
        in refused.stderr
    )
    assert "config.clip.size=48: the reference needs a multiple of 32\n" in refused.stderr
    assert "config.eval.batch_size=48: the reference leaves out the last incomplete batch" in refused.stderr


def test_mixing_that_the_reference_of_umdr_does_not_have_is_refused(small_demo, tmp_path, monkeypatch):
    (tmp_path / "train.py").touch()
    fields = f"--config.data.data_dir={small_demo}", "--config.mixing.shufflemix_alpha=0.2"
    arguments = f"--reference={tmp_path}", f"--workdir={tmp_path}", "--config=umdr_demo_reference", *fields
    monkeypatch.setattr(sys, "argv", ["train_beside.py", *arguments])
    with pytest.raises(SystemExit, match=r"config.mixing.reference_label=False: the reference has True"):
        beside.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modalities", "depth", "fusion"], "fusion starts from rgb and depth: give all three"),
        (["--colour=red"], "unexpected arguments: --colour=red"),
        ([], "--reference: expected a checkout of the reference"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, arguments, message):
    refused = run_script(f"--workdir={tmp_path}", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("config", "script"), [("demo_reference", "tools/train.py"), ("umdr_demo_reference", "train.py")]
)
def test_a_folder_that_is_no_checkout_is_refused(tmp_path, config, script):
    refused = run_script("--reference=/nowhere", f"--workdir={tmp_path}", f"--config={config}")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"error: --reference=/nowhere: no checkout of the reference, {script} is not there" in refused.stderr
