"""Runs the commands of README and docs as they stand there, one after the other, as a new user would.

    ./scripts/setup.sh && .venv/bin/python -m tests.run_docs --logs /tmp/logs    # in a fresh clone

Blocks of shell and Python run in the checkout, those of one page in order. Files that pages take for granted, such as
`clip.mp4`, are made before; where a command runs with something else than it says, that is told. What cannot run on any
machine is listed with the reason: `tests/test_docs.py` parses those commands too. It takes an hour on two cores; one
line a command goes to stdout, and the exit status is 1 if one failed.
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

from tests import made_for_docs
from tests.conftest import ROOT

PAGES = (
    "README.md", "docs/quick_start.md", "docs/predict.md", "docs/report.md", "docs/demo_page.md", "docs/export.md",
    "docs/own_data.md", "docs/data.md", "docs/from_pytorch.md", "docs/recipes.md", "docs/evaluation.md",
    "docs/checkpoints.md", "docs/multi_host.md", "docs/scaling.md", "CONTRIBUTING.md",
)  # fmt: skip
DATA_SETS = r"(ntu|nvgesture|thu_read|isogd|jester)"
# What a command has in it -> why it is not run.
NOT_RUN = {
    r"test\.sh": "takes an hour; what CI runs",
    r"^tensorboard": "another package, which the comment says",
    r"camera:0": "needs a camera",
    r"sbatch|tpu_pod|^ssh|--coordinator=host": "needs other machines",
    r"FlinkRunner|\[beam\]": "needs a Beam cluster",
    r"uv pip compile": "changes the lock file",
    rf"dataset\.py {DATA_SETS}|contact_sheet\.py {DATA_SETS}": "needs the data set",
    rf"(rgbd_jax\.main|local_cluster).*configs/{DATA_SETS}(?!.*--mode=plan)": "needs the data set",
    r"configs/folder\.py": "the paper's network: days without an accelerator",
}
# What a command says -> what it runs with.
RUN_WITH = {r"ffmpeg .*? - \|": "cat long.mkv |"}
# What pages make, and do not expect to be there.
MADE = (
    "checkpoints", "clips", "drawn", "drawn.mp4", "demo.zip", "mine.zip", "mine.onnx", "mine.pth.tar", "nv.zip",
    "jester.pth.tar", "jester.safetensors", "nv_rgb.pth.tar", "sheet.png", "runs/small", "runs/two",
    *made_for_docs.RUNS,
)  # fmt: skip
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
                print(f"{'':22} with     {instead}", flush=True)
    command = ["bash", "-euo", "pipefail", "-c", statement] if language == "sh" else [sys.executable, "-c", statement]
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as said:
        said.write(f"{statement}\n\n")
        said.flush()
        if "rgbd_jax.demo " in statement:
            return serve(command, environment, log)
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=said, check=False)
    return "ok" if done.returncode == 0 else "FAILED"


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
    if page == "docs/demo_page.md":
        source, target = ROOT / "depth.pth.tar", ROOT / "checkpoints/nvgesture"
        subprocess.run([sys.executable, "-m", "rgbd_jax.convert", source, target], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
