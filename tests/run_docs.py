"""Runs the commands of README and docs as they stand there, one after the other, as a new user would.

    ./scripts/setup.sh && .venv/bin/python -m tests.run_docs --logs /tmp/logs    # in a fresh clone

Blocks of shell and Python run in the checkout, page by page in order: later ones take runs of earlier ones. What pages
take for granted is made before: `clip.mp4`, authors' files with random weights, a few clips in the layout of each data
set. Where a command runs with something else than it says, that is told: trainings of the paper's network take an epoch
of small frames. What cannot run on any machine is listed with the reason: `tests/test_docs.py` parses those commands
too. It takes three hours on two busy cores; one line a command goes to stdout, and the exit status is 1 if one failed.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests import made_for_docs, made_raw_data
from tests.conftest import ROOT

PAGES = (
    "README.md", "docs/quick_start.md", "docs/predict.md", "docs/report.md", "docs/demo_page.md", "docs/export.md",
    "docs/own_data.md", "docs/data.md", "docs/from_pytorch.md", "docs/recipes.md", "docs/evaluation.md",
    "docs/checkpoints.md", "docs/multi_host.md", "docs/scaling.md", "CONTRIBUTING.md",
)  # fmt: skip
TRAINED_SMALL = r"--config configs/(?:ntu\w*|nvgesture|thu_read|isogd|jester|folder)\.py(?::\w+)?"
# What a command has in it -> why it is not run.
NOT_RUN = {
    r"test\.sh": "the whole suite; what CI runs",
    r"^tensorboard": "another package, which the comment says",
    r"camera:0": "needs a camera",
    r"sbatch|tpu_pod|^ssh|--coordinator=host": "needs other machines",
    r"FlinkRunner|\[beam\]": "needs a Beam cluster",
    r"uv pip compile": "changes the lock file",
}
# What a command says -> what it runs with.
SMALL = (
    "--config.clip.size=64 --config.train.batch_size=4 --config.eval.batch_size=4 --config.train.epochs=1 "
    "--config.schedule.warm_up_epochs=0"
)
RUN_WITH = {
    r"ffmpeg .*? - \|": "cat long.mkv |",
    rf"({TRAINED_SMALL})(?!.*--mode=plan)": rf"\1 {SMALL}",
    r"(--config\.continue_from=\S+)": r"\1 --config.train.epochs=2",  # it was there after one
}
# What pages make, and do not expect to be there.
MADE = (
    "checkpoints", "clips", "drawn", "drawn.mp4", "demo.zip", "mine.zip", "mine.onnx", "mine.pth.tar", "nv.zip",
    "jester.pth.tar", "jester.safetensors", "nv_rgb.pth.tar", "sheet.png", "runs/small", "runs/two",
    "runs/mine",
)  # fmt: skip
# Page -> converted checkpoints that it takes for granted.
CONVERTED = {
    "docs/demo_page.md": {"checkpoints/nvgesture": "depth.pth.tar"},
    "docs/evaluation.md": {"checkpoints/jester": "model_best.pth.tar"},
}
READY = re.compile(r"the page is ready at (\S+) \(up to")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=PAGES, help="in order; all if none is named")
    parser.add_argument("--logs", type=Path, required=True, help="folder for what the commands say")
    arguments = parser.parse_args()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    failed = 0
    for page in arguments.pages:
        for number, (language, statement) in enumerate(statements((ROOT / page).read_text())):
            if number == 0:
                prepare(page)
            made_for_docs.runs(ROOT)
            log = arguments.logs / f"{page.replace('/', '_')}.{number:02}.log"
            started = time.monotonic()
            status = run(language, statement, log)
            failed += status == "FAILED"
            told = " ".join(re.sub(r"\s#\s.*", "", statement).split())[:100]
            print(f"{page:22} {status:7} {time.monotonic() - started:6.1f} s  {told}", flush=True)
    sys.exit(failed > 0)


def statements(page: str) -> Iterator[tuple[str, str]]:
    """Yields the language ("sh" or "python") and the text of each statement; blocks of Python are one."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if language == "python":
            yield language, block
        elif language == "sh" or block.startswith("$ "):
            lines = block.replace("\\\n", " ").splitlines()
            if language != "sh":
                lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            yield from (("sh", statement) for statement in whole(lines))


def whole(lines: list[str]) -> Iterator[str]:
    """Yields lines, those of a loop together."""
    pending: list[str] = []
    for line in filter(None, lines):
        pending.append(line)
        text = "\n".join(pending)
        if subprocess.run(["bash", "-n", "-c", text], capture_output=True, check=False).returncode == 0:
            yield text
            pending = []
    if pending:
        raise ValueError(f"bash does not take {pending}")


def run(language: str, statement: str, log: Path) -> str:
    """Runs a statement in the checkout; returns "ok", "FAILED" or why it was not run."""
    if language == "sh":
        for pattern, reason in NOT_RUN.items():
            if re.search(pattern, statement):
                return f"not run: {reason};"
        for pattern, instead in RUN_WITH.items():
            statement, count = re.subn(pattern, instead, statement)
            if count:
                told = instead.removeprefix(r"\1 ")
                print(f"{'':22} with     {told}", flush=True)
        begin_anew(statement)
    command = ["bash", "-euo", "pipefail", "-c", statement] if language == "sh" else [sys.executable, "-c", statement]
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as said:
        said.write(f"{statement}\n\n")
        said.flush()
        if "rgbd_jax.tools.serve " in statement:
            return serve(command, environment, log)
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=said, check=False)
    return "ok" if done.returncode == 0 else "FAILED"


def begin_anew(statement: str) -> None:
    """Removes the workdirs of trainings of the paper's network: an earlier page may have left one of the same name."""
    for line in statement.splitlines():
        if re.search(TRAINED_SMALL, line) and "--mode=" not in line:
            for name in re.findall(r"--workdir \"?([^\s\";]+)", line):
                for workdir in ROOT.glob(re.sub(r"\$\{?\w+\}?", "*", name)):
                    shutil.rmtree(workdir)


def serve(command: list[str], environment: dict[str, str], log: Path) -> str:
    """Starts a server, asks it for its page, and stops it as Ctrl-C does."""
    with log.open("a") as said:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)
        for _ in range(300):
            if READY.search(log.read_text()) or server.poll() is not None:
                break
            time.sleep(1)
        ready = READY.search(log.read_text())
        there = False
        if ready:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready[1], timeout=60) as answer:
                there = answer.status == 200 and b"</html>" in answer.read()
        os.killpg(server.pid, signal.SIGINT)
        stopped = server.wait(timeout=60)
        said.write(f"\nthe page was there: {there}; stopped with {stopped}\n")
    return "ok" if there else "FAILED"


def prepare(page: str) -> None:
    """Makes what a page takes for granted, anew, and removes what it makes."""
    for name in MADE:
        path = ROOT / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    made_for_docs.clips(ROOT)
    made_for_docs.checkpoints(ROOT)
    made_raw_data.write(ROOT)
    for target, source in CONVERTED.get(page, {}).items():
        subprocess.run([sys.executable, "-m", "rgbd_jax", "convert", source, target], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
