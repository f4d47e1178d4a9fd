"""Runs the commands of README and docs in order, as a new user would.

    ./scripts/setup.sh && .venv/bin/python -m tests.run_docs --logs LOGS    # in a fresh clone

Blocks of shell and Python run in the checkout; later pages use the runs of earlier ones, and what pages presuppose is
made first. Trainings of the paper's network run for one epoch on small frames, and what cannot run on any machine is
listed with the reason; both are printed. It takes three hours on two busy cores; one line a command goes to stdout, and
the exit status is 1 if a command failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rgbd_jax.configs import nvgesture
from rgbd_jax.datasets.rgbd_demo.clips import make_pair
from rgbd_jax.datasets.rgbd_demo.motions import CLASS_NAMES

from rgbd_jax.inference.video import write_video
from rgbd_jax.pytorch.torch_file import write_torch
from tests import made_raw_data
from tests.conftest import ROOT
from tests.pytorch.networks import checkpoint, manifest_of, random_state_dict

LINKS = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/README.md").read_text())
PAGES = ["README.md", *dict.fromkeys(f"docs/{name}" for name in LINKS)]
LARGE = r"--config configs/(?:ntu\w*|nvgesture|thu_read|isogd|jester|utd_mhad|folder)\.py(?::\w+)?"
# Pattern of a command -> why it is not run.
NOT_RUN = {
    r"test\.sh": "the whole suite",
    r"^tensorboard": "another package",
    r"camera:0": "needs a camera",
    r"sbatch|tpu_pod|^ssh|--coordinator=host": "needs other machines",
    r"FlinkRunner|\[beam\]": "needs a Beam cluster",
    r"--device_kind": "needs ./scripts/setup.sh plan, and half an hour",
}
# Pattern of a command -> what it runs with.
RUN_WITH = {
    r"ffmpeg .*? - \|": "cat long.mkv |",
    r"((?:python -m rgbd_jax|rgbd) serve[^#\n]*)": r"timeout --preserve-status --signal=INT 99 \1 2>&1 "
    "| grep 'is ready at' ",
    rf"({LARGE})": r"\1 --config.clip.size=64 --config.train.batch_size=4 --config.eval.batch_size=4 "
    "--config.train.epochs=1 --config.schedule.warm_up_epochs=0",
    r"(--config configs/umdr_demo\.py(?::\w+)?)": r"\1 --config.train.epochs=1 --config.schedule.warm_up_epochs=0",
    r"(--config\.continue_from=\S+)": r"\1 --config.train.epochs=2",  # the checkpoint is of one
}
# What pages write, and expect to be absent.
WRITTEN = "checkpoints clips drawn *.mp4 *.zip *.onnx *.pth.tar *.safetensors sheet.png runs/small runs/two runs/mine"
# Page -> converted checkpoint that it presupposes, and its source.
CONVERTED = {
    "docs/demo_page.md": ("checkpoints/nvgesture", "depth.pth.tar"),
    "docs/evaluation.md": ("checkpoints/jester", "model_best.pth.tar"),
}
# Runs that pages name before they train them, copied from the demo's.
RUNS = ("runs/mine", "runs/nv_rgb")
CONTINUED = "Checkpoints/I3DWTrans-NvGesture-M/checkpoint.pth.tar"
# Files like the authors', with random weights.
CHECKPOINTS = {
    "model_best.pth.tar": "rgb",
    "model_best-Nv-M.pth.tar": "rgb",
    "depth.pth.tar": "depth",
    CONTINUED: "rgb",
}


def main() -> None:
    """Runs the pages of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=PAGES, help="in order (default: all)")
    parser.add_argument("--logs", type=Path, required=True, help="folder for the output of the commands")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    failed = False
    for page in args.pages:
        prepare(page)
        for number, (language, statement) in enumerate(statements((ROOT / page).read_text())):
            copy_runs()
            started = time.monotonic()
            status = run(language, statement, args.logs / f"{page.replace('/', '_')}.{number:02}.log")
            failed |= status == "FAILED"
            shown = " ".join(re.sub(r"\s#\s.*", "", statement).split())[:100]
            print(f"{page:22} {status:7} {time.monotonic() - started:6.1f} s  {shown}", flush=True)
    sys.exit(failed)


def prepare(page: str) -> None:
    """Makes what a page presupposes, and removes what it writes."""
    for path in (path for pattern in WRITTEN.split() for path in ROOT.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    make_clips()
    make_checkpoints()
    made_raw_data.write(ROOT)
    if page in CONVERTED:
        target, source = CONVERTED[page]
        subprocess.run([sys.executable, "-m", "rgbd_jax", "convert", source, target], cwd=ROOT, check=True)


def make_clips() -> None:
    """Makes videos, folders of frames, an array for an exported network, and raw clips in RAW."""
    made = [clip for pair in (0, 1) for clip in make_pair(0, "validation", pair, 0)]
    encoded = [np.frombuffer(frame, np.uint8) for clip in made for frame in clip.rgb]
    frames = [cv2.cvtColor(cv2.imdecode(frame, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for frame in encoded]
    write_video(ROOT / "clip.mp4", frames[: len(made[0].rgb)], 15)
    write_video(ROOT / "long.mp4", frames, 15)
    made_raw_data.video_of(ROOT / "long.mkv", [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames])
    np.save(ROOT / "clips.npy", np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8))
    for number, clip in enumerate(made, 1):
        write_frames(ROOT / f"clips/wave_{number:03}", clip.rgb, "jpg")
    shutil.rmtree(ROOT / "RAW", ignore_errors=True)
    for split, count in {"train": 5, "validation": 2}.items():
        for clip in (clip for i in range(count) for pair in (0, 1) for clip in make_pair(0, split, pair, i)):
            name = f"{split}/{CLASS_NAMES[clip.label]}/{clip.name}"
            write_frames(ROOT / "RAW/rgb" / name, clip.rgb, "jpg")
            write_frames(ROOT / "RAW/depth" / name, clip.depth, "png")


def write_frames(folder: Path, frames: list[bytes], suffix: str) -> None:
    """Writes the frames of a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        (folder / f"{number:06}.{suffix}").write_bytes(frame)


def make_checkpoints() -> None:
    """Makes the files of `CHECKPOINTS`."""
    for name, modality in CHECKPOINTS.items():
        tensors = random_state_dict(manifest_of(nvgesture.get_config(modality), 25))
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        write_torch(ROOT / name, checkpoint(tensors, epoch=1 if name == CONTINUED else 100))


def copy_runs() -> None:
    """Copies the demo's run, once it exists, to the names of `RUNS`."""
    for name in RUNS:
        if (ROOT / "runs/demo").exists() and not (ROOT / name).exists():
            shutil.copytree(ROOT / "runs/demo", ROOT / name)


def statements(page: str) -> Iterator[tuple[str, str]]:
    """Yields language ("sh" or "python") and text of each statement; a block of Python is one, and so is a loop."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if language == "python":
            yield language, block
            continue
        lines = block.replace("\\\n", " ").splitlines()
        if not language:
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        pending = ""
        for line in filter(None, lines if language in ("", "sh") else ()):
            pending += f"{line}\n"
            if subprocess.run(["bash", "-n", "-c", pending], capture_output=True, check=False).returncode == 0:
                yield "sh", pending
                pending = ""


def run(language: str, statement: str, log: Path) -> str:
    """Runs a statement in the checkout; returns "ok", "FAILED" or why it is not run."""
    command = [sys.executable, "-c", statement]
    if language == "sh":
        for pattern, reason in NOT_RUN.items():
            if re.search(pattern, statement):
                return f"not run: {reason};"
        remove_large_runs(statement)
        for pattern, replacement in RUN_WITH.items():
            statement, count = re.subn(pattern, replacement, statement)
            if count:
                print(f"{'':22} with     {replacement}", flush=True)
        command = ["bash", "-euo", "pipefail", "-c", statement]
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as output:
        print(statement, file=output, flush=True)
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False
        ).returncode
    return "FAILED" if status else "ok"


def remove_large_runs(statement: str) -> None:
    """Removes workdirs that an earlier page wrote and this statement trains, of the paper's network."""
    for line in statement.splitlines():
        if re.search(LARGE, line) and "--mode=" not in line:
            for name in re.findall(r"--(?:workdir|weights) \"?([^\s\";]+)", line):
                for workdir in ROOT.glob(re.sub(r"\$\{?\w+\}?", "*", name)):
                    shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
