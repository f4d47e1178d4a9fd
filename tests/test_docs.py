"""Links of the documentation resolve, and its commands, config fields, messages and imports exist."""

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import sys
from typing import Any
from unittest import mock

import pytest
from flax.traverse_util import flatten_dict

from rgbd_jax import cli
from rgbd_jax.config import load_config
from tests.conftest import ROOT

PATTERNS = ("*.md", "docs/*.md", "datasets/*/*.md", ".github/**/*.md")
PAGES = {str(page.relative_to(ROOT)): page.read_text() for pattern in PATTERNS for page in sorted(ROOT.glob(pattern))}
# Scripts that pass their arguments on to `rgbd_jax.main`, and how many arguments of their own come first.
LAUNCHERS = {"scripts/slurm.sh": 0, "scripts/tpu_pod.sh": 2}


def blocks(page: str, language: str) -> list[str]:
    """Returns the code blocks of a page in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


def anchors(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def commands(page: str) -> list[list[str]]:
    """Returns the simple commands, as words, of a page's shell blocks and of the lines after a prompt in other blocks.

    The variable of a loop has its first value.
    """
    shell = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    prompts = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    shell += [line.removeprefix("$ ") for line in prompts if line.startswith("$ ")]
    found: list[list[str]] = [[]]
    variables: dict[str, str] = {}
    for line in shell:
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                if found[-1][:1] == ["for"]:
                    variables[found[-1][1]] = found[-1][3]
                found.append([])
            else:
                found[-1].append(re.sub(r"\$\{?(\w+)\}?", lambda named: variables.get(named[1], named[0]), word))
    return [command for command in found if command]


def calls(command: list[str]) -> list[list[str]]:
    """Returns what a command calls of this project, [module or file, arguments...], also through a launcher."""
    words = [word.removeprefix("./") for word in command]
    if words[0] == "rgbd":
        return [["rgbd_jax", *words[1:]]]
    for i, word in enumerate(words):
        if word.rsplit("/", 1)[-1] in ("python", "python3") and words[i + 1 : i + 2] == ["-m"]:
            return [words[i + 2 :]] if words[i + 2].split(".")[0] == "rgbd_jax" else []
        if re.fullmatch(r"scripts/\w+\.(sh|py)", word):
            arguments = words[i + 1 :]
            called = [[word, *arguments]]
            if "--" in arguments:
                called.append(["rgbd_jax.main", *arguments[arguments.index("--") + 1 :]])
            elif word in LAUNCHERS and arguments[0] not in ("setup", "stop"):
                called.append(["rgbd_jax.main", *arguments[LAUNCHERS[word] :]])
            return called
    return []


class ParsedError(BaseException):
    """Ends a program when its arguments are parsed."""


def parse(original: Any, parser: argparse.ArgumentParser, *given: Any) -> Any:
    """Stands in for `ArgumentParser.parse_known_args`: parses, loads the config, and ends the program."""
    args, others = original(parser, *given)
    if parser.prog == "rgbd":  # there is no such command
        return args, others
    if unknown := [argument for argument in others if not argument.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(args, "config", None):
        load_config(args.config, others)
    raise ParsedError


def problem(call: list[str]) -> str:
    """Returns what is wrong with the arguments of a call, empty if nothing is; they are parsed and nothing is run."""
    target, *arguments = call
    original, stderr = argparse.ArgumentParser.parse_known_args, io.StringIO()
    with (
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(stderr),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", lambda *given: parse(original, *given)),
        mock.patch.object(sys, "argv", call),
    ):
        try:
            if target == "rgbd_jax":
                cli.main(arguments)
            elif target == "rgbd_jax.main":
                cli.run(importlib.import_module(target), target, arguments)
            elif not os.access(ROOT / target, os.X_OK if target.endswith(".sh") else os.R_OK):
                return f"{target} does not exist or cannot be run"
            elif target.endswith(".py"):
                runpy.run_path(str(ROOT / target), run_name="__main__")
        except ParsedError:
            pass
        except ValueError as error:
            return str(error)
        except SystemExit as stopped:
            return f"{stderr.getvalue()}{stopped.code}" if stopped.code else ""
    return ""


def test_commands_are_valid():
    found = {page: [call for command in commands(text) for call in calls(command)] for page, text in PAGES.items()}
    assert all(found[page] for page in ("README.md", "docs/own_data.md", "docs/multi_host.md"))
    checked = [(page, shlex.join(call), problem(call)) for page in found for call in found[page]]
    assert not [entry for entry in checked if entry[-1]]


def test_config_fields_exist():
    known = {"config.json", "config.py"}
    for file in (ROOT / "configs").glob("[a-z]*.py"):
        for field in flatten_dict(load_config(str(file)).to_dict()):
            known |= {".".join(["config", *field[:length]]) for length in range(1, len(field) + 1)}
    named = [
        (page, field.rstrip("."))
        for page, text in PAGES.items()
        for code in re.findall(r"`([^`\n]+)`", text)
        for field in re.findall(r"\bconfig\.[a-z_0-9.]+(?![a-z_0-9.*])", code)
    ]
    assert len(named) > 100
    assert not [(page, field) for page, field in named if field not in known]


def texts_of_programs() -> list[str]:
    """Returns all texts in the sources, with a mark where values are inserted."""
    texts = [file.read_text() for file in (ROOT / "scripts").glob("*.sh")]
    for file in (file for folder in ("rgbd_jax", "datasets", "scripts") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(x.value if isinstance(x, ast.Constant) else "\0" for x in node.values))
    return texts


def test_explained_messages_exist():
    page, texts = PAGES["docs/troubleshooting.md"], texts_of_programs()
    messages = re.findall(r"^\| `([^`]+)` \|", page[page.index("## Messages") : page.index("## Data")], re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        parts = [part.strip() for part in re.split("…|%s", message)]
        assert any(all(part in text for part in parts) for text in texts), message


def test_imports_of_python_blocks_exist():
    nodes = [node for text in PAGES.values() for code in blocks(text, "python") for node in ast.walk(ast.parse(code))]
    ours = [x for x in nodes if isinstance(x, ast.ImportFrom) and str(x.module).startswith("rgbd_jax")]
    assert ours
    for node in ours:
        for name in node.names:
            assert hasattr(importlib.import_module(str(node.module)), name.name), f"{node.module}.{name.name}"
