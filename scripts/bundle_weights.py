"""Makes the networks that the package bundles from runs of both demos, narrower and with fewer attention heads.

python scripts/bundle_weights.py --train

Without `--train` the runs are there already. For each it writes, beside `rgbd_jax/inference/registry.json`, the best
checkpoint in float16 and its model card, and the network's entry in the registry. The accuracy in both is measured with
the float16 weights.
"""

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from absl import flags
from safetensors import safe_open

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.experiment import evaluate
from rgbd_jax.pytorch.convert import halved, write_weights
from rgbd_jax.pytorch.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
INFERENCE = ROOT / "rgbd_jax" / "inference"
INPUTS = {"rgb": "RGB", "depth": "depth", "fusion": "RGB and depth, fused"}
HEADS = 4
MAX_BYTES = 8_000_000  # of all bundled files, cards included


class Family(NamedTuple):
    """Bundled networks of one config."""

    name: str  # what their names start with
    config: str
    title: str
    width: float
    fusion_epochs: int  # a narrow network takes longer than the demo's


FAMILIES = (Family("demo", "demo", "", 0.1875, 12), Family("demo-umdr", "umdr_demo", "UMDR, ", 0.125, 5))


def main() -> None:
    """Bundles the weights of all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/bundled"), help="folder of the runs (%(default)s)")
    parser.add_argument("--train", action="store_true", help="train them first, or resume them")
    args = parser.parse_args()
    flags.FLAGS(sys.argv[:1])  # Grain reads them
    entries = {}
    try:
        for family, modality in itertools.product(FAMILIES, INPUTS):
            if args.train:
                train(family, modality, args.runs)
            entries[f"{family.name}-{modality}"] = bundle(family, modality, args.runs)
        if (size := sum(file.stat().st_size for file in (INFERENCE / "weights").iterdir())) > MAX_BYTES:
            raise ValueError(f"the bundled files have {size} bytes; expected at most {MAX_BYTES}")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    registry = INFERENCE / "registry.json"
    known = json.loads(registry.read_text())
    with atomic_write(registry) as unfinished:
        others = {name: entry for name, entry in known.items() if name not in entries}
        unfinished.write_text(json.dumps(entries | others, indent=1) + "\n")


def train(family: Family, modality: str, runs: Path) -> None:
    """Trains one network; the fusion is initialised from the runs beside it."""
    config, run = f"{ROOT}/configs/{family.config}.py:{modality}", runs / f"{family.config}_{modality}"
    command = [sys.executable, "-m", "rgbd_jax.main", f"--config={config}", f"--workdir={run}"]
    command += [f"--config.model.width={family.width}", f"--config.model.attention_heads={HEADS}"]
    if modality == "fusion":
        streams = {each: runs / f"{family.config}_{each}" for each in ("rgb", "depth")}
        command += [f"--config.fusion.init_{each}_from={stream}" for each, stream in streams.items()]
        command.append(f"--config.train.epochs={family.fusion_epochs}")
    subprocess.run(command, check=True, cwd=ROOT)


def bundle(family: Family, modality: str, runs: Path) -> dict[str, str]:
    """Writes the file and the card of one network; returns its entry in the registry."""
    name, run = f"{family.name}-{modality}", runs / f"{family.config}_{modality}"
    weights = halved(read_weights(run))
    if weights.card is None:
        raise ValueError(f"{run}: no run; train it by --train")
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder) / name, weights)
        measured = evaluate(read_config(run), Path(folder) / name)
    step = {"step": weights.card.history[-1]["step"]}  # a converted checkpoint records none
    history = ({**weights.card.history[-1], **measured, **step},)
    command = [each.replace(f"{ROOT}/", "") for each in weights.card.provenance["command"]]  # no paths of this machine
    provenance = {**weights.card.provenance, "command": command}
    card = dataclasses.replace(weights.card, history=history, provenance=provenance)
    file = INFERENCE / "weights" / f"{name}.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    write_weights(file, dataclasses.replace(weights, card=card))
    with safe_open(file, "numpy") as opened:
        file.with_suffix(".md").write_text(opened.metadata()["model_card"])
    print(f"{name}: top-1 {measured['top1']:.2%} of {measured['clips']} clips, {file.stat().st_size} bytes")
    inputs = f"{family.title}{INPUTS[modality]}"
    return {
        "about": f"12 rendered hand motions, {inputs}, width {family.width:g}, {HEADS} attention heads",
        "accuracy": f"{measured['top1']:.2%} top-1 of the demo's {measured['clips']} validation clips, measured",
        "file": f"weights/{file.name}",
    }


if __name__ == "__main__":
    main()
