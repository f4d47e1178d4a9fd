"""Training beside the reference: the table of accuracies, and configs that it does not have."""

import subprocess
import sys

from benchmarking.accuracies import table
from tests.conftest import ROOT


def train_beside(*arguments):
    command = [sys.executable, "scripts/train_beside.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_spread_and_interval_of_the_difference():
    def run(accuracy, seconds):
        return {"epochs": {"top1": [0.1, accuracy], "reference_protocol": [0.1, accuracy]}, "seconds": seconds}

    ours, theirs = [run(0.5, 60), run(0.6, None)], [run(0.7, 90), run(0.8, 150)]
    rows = table({"depth": {"ours": ours, "reference": theirs}}).splitlines()[2:]
    # Welch's interval of two samples of standard deviation 5 sqrt(2): 4.303 (t of 2 degrees of freedom) times sqrt(50).
    assert rows[0] == "| depth, last epoch, each clip once, % | 55.0 ± 7.1 | 75.0 ± 7.1 | -20.0 (-50.4 to +10.4) |"
    assert rows[-1] == "| depth, minutes a seed | 1.0 | 2.0 ± 0.7 | |"


def test_configs_that_the_reference_does_not_have_are_refused(small_demo, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").touch()
    fields = f"--config.data.data_dir={small_demo}", "--config.clip.size=48"
    refused = train_beside(f"--reference={tmp_path}", f"--workdir={tmp_path}", "--config=demo", *fields)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        "error: the reference cannot train with this config:\n  config.model.width=0.25: the reference has 1.0\n"
        in refused.stderr
    )
    assert "config.clip.size=48: the reference needs a multiple of 32\n" in refused.stderr
    assert "config.eval.batch_size=48: the reference leaves out the last incomplete batch" in refused.stderr
