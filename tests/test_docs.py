"""Links within the documentation lead somewhere, and its commands are ones that the programs take."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from tests.conftest import ROOT

PATTERNS = ("*.md", "docs/*.md", "datasets/*/*.md", ".github/**/*.md")
PAGES = sorted(str(page.relative_to(ROOT)) for pattern in PATTERNS for page in ROOT.glob(pattern))
# Scripts that hand what follows on to `rgbd_jax.main`.
LAUNCHERS = {"scripts/local_cluster.py", "scripts/kill_and_resume.py"}


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def commands_of(page: str) -> list[list[str]]:
    """The simple commands, as words, of a page's shell blocks and of lines after a prompt in its other blocks.

    The variable of a loop has its first value.
    """
    shell = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        joined = block.replace("\\\n", " ")
        lines = joined.splitlines()
        shell += lines if language == "sh" else [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found, variables = [], {}
    for line in shell:
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                if command[:1] == ["for"]:
                    variables[command[1]] = command[3]
                found.append(command)
                command = []
            else:
                command.append(re.sub(r"\$\{?(\w+)\}?", lambda named: variables.get(named[1], named[0]), word))
    return [command for command in found if command]


def calls_of(command: list[str]) -> list[list[str]]:
    """What a command calls of this project: [module or file, arguments...], also what a launcher hands on."""
    words = [word.removeprefix("./") for word in command]
    script = next((place for place, word in enumerate(words) if re.fullmatch(r"scripts/\w+\.(sh|py)", word)), None)
    if script is not None:
        name, arguments = words[script], command[script + 1 :]
        if name == "scripts/slurm.sh":
            return [[name], ["rgbd_jax.main", *arguments]]
        if name == "scripts/tpu_pod.sh" and arguments[0] not in ("setup", "stop"):
            return [[name], ["rgbd_jax.main", *arguments[2:]]]
        if name in LAUNCHERS and "--" in arguments:
            return [[name, *arguments], ["rgbd_jax.main", *arguments[arguments.index("--") + 1 :]]]
        return [[name, *arguments]]
    for place, word in enumerate(words[:-2]):
        if word.rsplit("/", 1)[-1] in ("python", "python3") and words[place + 1] == "-m":
            module, *arguments = command[place + 2 :]
            return [[module, *arguments]] if module.split(".")[0] in ("rgbd_jax", "datasets", "scripts") else []
    return []


CALLS = {
    page: calls
    for page in PAGES
    if (calls := [call for command in commands_of((ROOT / page).read_text()) for call in calls_of(command)])
}


def problems_of(calls: list[list[str]]) -> list[str | None]:
    """What the programs say of their arguments, None where they would start; all are asked in one process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    asked = subprocess.run(
        [sys.executable, "-m", "tests.parse_commands"],
        input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout)


def test_commands_are_ones_that_the_programs_take():
    assert {"README.md", "docs/own_data.md", "docs/multi_host.md"} <= CALLS.keys()
    python = {page: [call for call in calls if not call[0].endswith(".sh")] for page, calls in CALLS.items()}
    flat = [(page, call) for page, calls in python.items() for call in calls]
    assert len(flat) > 40
    problems = problems_of([call for _, call in flat])
    wrong = [
        f"{page}: {shlex.join(call)}\n    {problem}"
        for (page, call), problem in zip(flat, problems, strict=True)
        if problem is not None
    ]
    assert not wrong, "\n".join(wrong)
    for page, calls in CALLS.items():
        for script, *_ in calls:
            assert not script.endswith(".sh") or os.access(ROOT / script, os.X_OK), f"{page}: {script}"


def test_wrong_commands_are_found():
    page = (
        "```sh\n"
        "until python -m rgbd_jax.main --config configs/demo.py --workdir a \\\n"
        "    --config.train.epochz=3; do sleep 1; done\n"
        "python -m rgbd_jax.main --config configs/demo.py --workdir a --config.train.epochs=three\n"
        "python -m rgbd_jax.main --config configs/nothing.py --workdir a --mode=eval\n"
        "python -m rgbd_jax.main --config configs/demo.py:rgb --workdirs a\n"
        "python -m rgbd_jax.pytorch a b --checkpoint=first\n"
        "python -m rgbd_jax.nothing\n"
        ".venv/bin/python scripts/nothing.py\n"
        "python scripts/check_dataset.py rgbd_folder --raw_dir RAW --every\n"
        "python scripts/local_cluster.py 4 -- --config configs/demo.py --workdir a --config.seed=x   # comment\n"
        "sbatch --nodes=2 scripts/slurm.sh --config configs/demo.py --workdir=a --config.nothing=1\n"
        "python -m rgbd_jax.evaluate fuse a b --weight_s 1,2 | tee log\n"
        "for k in 4 x; do\n"
        '  python -m rgbd_jax.main --config configs/demo.py --workdir "a_$k" --mode=eval --config.eval.clips=${k}\n'
        "done\n"
        "```\n"
        "```\n$ python -m rgbd_jax.pytorch a\nwritten to b\n```\n"
    )
    calls = [call for command in commands_of(page) for call in calls_of(command) if not call[0].endswith(".sh")]
    said = [problem or "" for problem in problems_of(calls)]
    expected = (
        "epochz", "three", "nothing.py", "workdirs", "invalid choice: 'first'", "rgbd_jax.nothing",
        "scripts/nothing.py", "--every", "", "seed", "nothing", "--weight_s", "", "OUT",
    )  # fmt: skip
    assert len(said) == len(expected)
    for call, problem, part in zip(calls, said, expected, strict=True):
        assert (part in problem) if part else not problem, (call, problem)


def fields_of(config: ConfigDict, prefix: str = "config") -> set[str]:
    """The names of a config's fields and sections, as flags have them."""
    found = set()
    for name in config:
        found.add(f"{prefix}.{name}")
        if isinstance(config[name], ConfigDict):
            found |= fields_of(config[name], f"{prefix}.{name}")
    return found


def test_config_fields_that_pages_name_exist():
    known: set[str] = set()
    for file in (ROOT / "configs").glob("[a-z]*.py"):
        known |= fields_of(importlib.import_module(f"configs.{file.stem}").get_config())
    assert "config.train.epochs" in known
    wrong, seen = [], 0
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", (ROOT / page).read_text()):
            for field in re.findall(r"\bconfig\.[a-z_0-9.]+(?![a-z_0-9.*])", code):
                seen += 1
                if not (ROOT / field).exists() and field not in ("config.json",) and field.rstrip(".") not in known:
                    wrong.append(f"{page}: {field} in `{code}`")
    assert seen > 100
    assert not wrong, "\n".join(wrong)


def texts_of_the_programs() -> list[str]:
    """All texts in the sources, with a mark where values are put in."""
    texts = []
    for folder in ("rgbd_jax", "datasets", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    texts.append("".join(map(str, parts)))
    return texts + [file.read_text() for file in (ROOT / "scripts").glob("*.sh")]


def test_messages_that_are_explained_are_those_of_the_programs():
    page, texts = (ROOT / "docs/troubleshooting.md").read_text(), texts_of_the_programs()
    section = page[page.index("## Messages") : page.index("## Data")]
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(messages) > 25
    for message in messages:
        parts = [part.strip() for part in re.split("…|%s", message)]
        assert any(all(part in text for part in parts) for text in texts), message


def test_what_python_blocks_import_is_there():
    found = 0
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in (
                    "rgbd_jax",
                    "datasets",
                    "configs",
                ):
                    module = importlib.import_module(str(node.module))
                    for name in node.names:
                        found += 1
                        assert hasattr(module, name.name), f"{page}: {node.module}.{name.name}"
    assert found
