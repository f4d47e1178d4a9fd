r"""Trains the PyTorch reference and this package on the same clips, with the same config, and compares their accuracy.

    python scripts/train_beside.py --reference ../MotionRGBD --workdir runs/beside            the demo's clips
    python scripts/train_beside.py --workdir runs/beside --sides ours --variants schedule.name=cosine
    python scripts/train_beside.py --reference ../MotionRGBD --workdir runs/nv --modalities rgb depth --seeds 1 \
        --config configs/nvgesture.py --data NVGESTURE --config.train.batch_size=6 --config.eval.batch_size=6

The prepared clips are written once more, frame by frame, in the reference's layout. Its own training script then trains
on them: its network, losses, optimizer, schedule, loader, evaluation and checkpoints
(`benchmarking/reference_shims.py` lists what is replaced). UMDR's needs timm and torchvision. Each seed of each
modality is trained by the reference and by this package in turn, each in a process of its own, on the CPU or one GPU;
fusion starts from the best checkpoints of the same seed. A variant is this package's training with one field changed;
in fusion it starts from the same networks as without.

Tables (stdout) and WORKDIR/curves.html show the validation accuracies, mean and standard deviation over the seeds: of
every clip once, with branches of their middle frames, and by the reference's protocol; WORKDIR/results.json has all.
WORKDIR/MODALITY keeps logs and results by side and seed. Run again, the script leaves finished trainings alone; of
unfinished ones this package's are resumed, the reference's begin anew. Two calls can train different sides in one
WORKDIR at once.
"""

import argparse
import json
import logging
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import ConfigDict

from benchmarking.accuracies import PROTOCOLS, SIDES, Accuracies, draw, read_results, table
from benchmarking.layout import check_trainable, write_layout
from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint.metric_writers import read_metrics
from rgbd_jax.config import load_config
from rgbd_jax.data.source import open_splits
from rgbd_jax.ingest.build import prepare_for
from rgbd_jax.modalities import STREAMS

log = logging.getLogger("rgbd_jax")


def main() -> None:
    """Trains what is missing, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of the reference")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of all trainings; an earlier one resumes")
    parser.add_argument("--data", metavar="FOLDER", help="raw clips of the config's data set; see also --config")
    parser.add_argument("--config", help="config file (demo_reference, with --data of a rgbd_folder)")
    parser.add_argument("--modalities", nargs="+", choices=STREAMS, default=["rgb"], help="(rgb); fusion needs all")
    parser.add_argument("--seeds", type=int, default=3, help="each is trained with seeds 0 to SEEDS-1 (%(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="what this call trains (both)")
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="FIELD=VALUE", help="our side with a field changed"
    )
    args, overrides = parser.parse_known_args()
    if others := [field for field in overrides if not field.startswith("--config.")]:
        parser.error(f"unexpected arguments: {' '.join(others)}")
    if "fusion" in args.modalities and {*args.modalities} != {*STREAMS}:
        parser.error("--modalities: fusion starts from rgb and depth: give all three")
    if "reference" in args.sides and not args.reference:
        parser.error("--reference: expected a checkout of the reference, unless --sides leaves it out")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    log.setLevel(logging.INFO)
    try:
        train_all(args, overrides)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    results = read_results(args.workdir, args.modalities)
    with atomic_write(args.workdir / "results.json") as written:
        written.write_text(json.dumps(results))
    draw(results, args.workdir / "curves.html")
    for other in dict.fromkeys(side for sides in results.values() for side in sides if side != "ours"):
        print(table(results, other))


def train_all(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains each seed of each modality by both sides, where its results are missing."""
    workdir = args.workdir.resolve()
    spec = args.config or "demo_reference"
    fields = [f"--config.data.data_dir={workdir / 'data'}"]
    if args.data:
        fields.append(f"--config.data.raw_dir={Path(args.data).resolve()}")
    if args.data and not args.config:
        chosen = {"dataset": "rgbd_folder", "train_split": "train", "eval_split": "validation"}
        fields += [f"--config.data.{field}={value}" for field, value in chosen.items()]
    fields += overrides
    for modality in (modality for modality in STREAMS if modality in args.modalities):
        config = load_config(f"{spec}:{modality}", fields)
        script = "train.py" if config.network == "umdr" else "tools/train.py"
        if "reference" in args.sides and not (args.reference / script).exists():
            raise ValueError(f"--reference={args.reference}: no checkout of the reference, {script} is not there")
        same = [
            f"--config.loss.reference_device_batch={config.train.batch_size}",
            "--config.data.reference_protocol=True",
            "--config.checkpoint.best_metric=reference_protocol",
            "--config.train.evaluate_every_epochs=1",
        ]
        config = load_config(f"{spec}:{modality}", [*fields, *same])
        prepare_for(config)
        splits = open_splits(config)
        check_trainable(config, splits)
        folder = workdir / modality
        folder.mkdir(parents=True, exist_ok=True)
        _check_same(folder / "config.json", config)
        for each in STREAMS[modality]:
            write_layout(splits, each, config, workdir / "clips")
        for seed in range(args.seeds):
            for side in (*args.sides, *args.variants):
                file, run = folder / f"{side}_{seed}.json", folder / f"{side}_{seed}"
                if file.exists():
                    continue
                log.info("%s, %s, seed %d: training; its log is %s.log", modality, side, seed, run)
                if side == "reference":
                    found = train_reference(args.reference.resolve(), config, splits.num_classes, run, seed)
                else:
                    changed = [] if side == "ours" else [f"--config.{side}"]
                    found = train_ours(f"{spec}:{modality}", [*fields, *same, *changed], run, seed)
                with atomic_write(file) as written:
                    written.write_text(json.dumps(found))


def train_ours(spec: str, fields: list[str], run: Path, seed: int) -> Accuracies:
    """Trains with this package's command in the workdir `run`; returns its accuracies.

    Raises:
        RuntimeError: the training failed.
    """
    command = [sys.executable, "-m", "rgbd_jax.main", f"--config={spec}", f"--workdir={run}", *fields]
    command += [f"--config.seed={seed}"]
    if spec.endswith(":fusion"):
        for modality in ("rgb", "depth"):
            command += [f"--config.fusion.init_{modality}_from={run.parents[1] / modality / f'ours_{seed}'}"]
    resumed, started = run.exists(), time.monotonic()
    with open(f"{run}.log", "ab") as written:
        status = subprocess.run(command, check=False, stdout=written, stderr=subprocess.STDOUT).returncode
    if status:
        raise RuntimeError(f"our training failed with status {status}; see {run}.log")
    evaluations = [row for row in read_metrics(run) if row["kind"] == "validation"]
    epochs = {protocol: [line[protocol] for line in evaluations] for protocol in PROTOCOLS}
    return Accuracies(epochs=epochs, seconds=None if resumed else time.monotonic() - started)


def train_reference(checkout: Path, config: ConfigDict, classes: int, run: Path, seed: int) -> Accuracies:
    """Trains the reference in a process of its own, in the folder `run`; returns its accuracies."""
    from benchmarking.reference_training import train

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, checkout, config, classes, run, seed).result()


def _check_same(file: Path, config: ConfigDict) -> None:
    """Raises ValueError if the trainings beside the file had another config."""
    fields = config.to_dict()
    for place in ("data_dir", "raw_dir", "workers"):
        del fields["data"][place]
    text = json.dumps(fields, indent=1, sort_keys=True)
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file} is of another config: give another --workdir")
    file.write_text(text)


if __name__ == "__main__":
    main()
