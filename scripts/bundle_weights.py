"""Makes the networks that the package bundles from runs of the demo with 4 attention heads of its 8, for their size.

python scripts/bundle_weights.py --train

Without `--train` the three runs are there already. For each it writes, beside `rgbd_jax/inference/registry.json`, the
best checkpoint in float16 and its model card, and the network's entry in the registry. The accuracy in both is measured
with the float16 weights.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags
from safetensors import safe_open

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.experiment import evaluate
from rgbd_jax.pytorch.convert import halved, write_weights
from rgbd_jax.pytorch.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
INFERENCE = ROOT / "rgbd_jax" / "inference"
RUNS = {"rgb": "demo", "depth": "demo_depth", "fusion": "demo_fusion"}
INPUTS = {"rgb": "RGB", "depth": "depth", "fusion": "RGB and depth, fused"}
HEADS = 4
MAX_BYTES = 8_000_000  # of all bundled files


def main() -> None:
    """Bundles the weights of all three runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--train", action="store_true", help="train them first, or resume them")
    args = parser.parse_args()
    flags.FLAGS(sys.argv[:1])  # Grain reads them
    try:
        if args.train:
            for modality, run in RUNS.items():
                train(modality, args.runs / run)
        entries = dict(bundle(modality, args.runs / run) for modality, run in RUNS.items())
        if (size := sum((INFERENCE / entry["file"]).stat().st_size for entry in entries.values())) > MAX_BYTES:
            raise ValueError(f"the weights have {size} bytes; expected at most {MAX_BYTES}")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    registry = INFERENCE / "registry.json"
    known = json.loads(registry.read_text())
    with atomic_write(registry) as unfinished:
        others = {name: entry for name, entry in known.items() if name not in entries}
        unfinished.write_text(json.dumps(entries | others, indent=1) + "\n")


def train(modality: str, run: Path) -> None:
    """Trains one network; the fusion is initialised from the runs beside it."""
    command = [sys.executable, "-m", "rgbd_jax.main", f"--config={ROOT}/configs/demo.py:{modality}", f"--workdir={run}"]
    if modality == "fusion":
        command += [f"--config.fusion.init_{each}_from={run.parent / RUNS[each]}" for each in ("rgb", "depth")]
    subprocess.run([*command, f"--config.model.attention_heads={HEADS}"], check=True, cwd=ROOT)


def bundle(modality: str, run: Path) -> tuple[str, dict[str, str]]:
    """Writes the file and the card of one network; returns its name and its entry in the registry."""
    name, weights = f"demo-{modality}", halved(read_weights(run))
    if weights.card is None:
        raise ValueError(f"{run}: no run; train it by --train")
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder) / name, weights)
        measured = evaluate(read_config(run), Path(folder) / name)
    step = {"step": weights.card.history[-1]["step"]}  # a converted checkpoint records none
    history = ({**weights.card.history[-1], **measured, **step},)
    file = INFERENCE / "weights" / f"{name}.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    write_weights(file, dataclasses.replace(weights, card=dataclasses.replace(weights.card, history=history)))
    with safe_open(file, "numpy") as opened:
        file.with_suffix(".md").write_text(opened.metadata()["model_card"])
    print(f"{name}: top-1 {measured['top1']:.2%} of {measured['clips']} clips, {file.stat().st_size} bytes")
    return name, {
        "about": f"12 rendered hand motions, {INPUTS[modality]}, {HEADS} attention heads",
        "accuracy": f"{measured['top1']:.2%} top-1 of the demo's {measured['clips']} validation clips, measured",
        "file": f"weights/{file.name}",
    }


if __name__ == "__main__":
    main()
