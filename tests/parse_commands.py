"""Parses command lines with the parsers of the commands that they call, and stops there: nothing is done.

`python -m tests.parse_commands` reads a JSON list of [file or module, arguments...] from stdin and writes one of the
same length to stdout: null where a command would start, else what it says of its arguments.
"""

import argparse
import functools
import importlib.util
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

# What most commands import: once here, not once for each of them.
import jax  # noqa: F401
import ml_collections.config_flags  # noqa: F401
import numpy as np  # noqa: F401
from absl import app, flags

POSITIONAL = {"rgbd_jax.tools.export": 2}  # arguments without a name that a command with absl's flags takes


class _ParsedError(BaseException):
    """The arguments are parsed: what follows is not to happen."""


def problem(command: Sequence[str]) -> str | None:
    """Returns what is wrong with a command, None if nothing is; it is parsed in a process of its own."""
    target = command[0]
    if target.endswith(".py"):
        if not Path(target).is_file():
            return f"{target} does not exist"
    elif not _module_exists(target):
        return f"there is no module {target}"
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                status = _parse(command)
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    return None if ended == 0 else text[-600:] or f"it ends with {ended}"


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _parse(command: Sequence[str]) -> int:
    target, *arguments = command
    sys.argv = [target, *arguments]
    patches = [
        mock.patch.object(app, "run", functools.partial(_parse_flags, positional=POSITIONAL.get(target, 0))),
        mock.patch.object(argparse.ArgumentParser, "parse_args", _stopping("parse_args")),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", _stopping("parse_known_args")),
    ]
    try:
        for patch in patches:
            patch.start()
        if target.endswith(".py"):
            sys.path.insert(0, str(Path(target).parent))
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        said = "it does not parse its arguments"
    except _ParsedError:
        return 0
    except SystemExit as stopped:
        if not stopped.code:  # --help
            return 0
        said = stopped.code if isinstance(stopped.code, str) else ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(said, flush=True)
    return 1


def _parse_flags(
    main: Callable[..., Any], argv: Sequence[str] | None = None, flags_parser: Any = None, *, positional: int
) -> None:
    del main
    parse = flags_parser or flags.FLAGS
    left = parse(sys.argv if argv is None else argv)
    if len(left) - 1 != positional:
        sys.exit(f"expected {positional} arguments without a name, found: {' '.join(left[1:])}")
    for name in flags.FLAGS:
        getattr(flags.FLAGS[name].value, "to_dict", None)  # a config whose file does not exist fails when it is used
    raise _ParsedError


def _stopping(name: str) -> Callable[..., Any]:
    """Returns a method of argparse that stops the program after it; parsers that it calls itself work as ever."""
    original = getattr(argparse.ArgumentParser, name)

    def method(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> None:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", _ORIGINAL["parse_args"]),
            mock.patch.object(argparse.ArgumentParser, "parse_known_args", _ORIGINAL["parse_known_args"]),
        ):
            original(self, *arguments, **named)
        raise _ParsedError

    return method


_ORIGINAL = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_known_args")}


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    json.dump([problem(command) for command in commands], sys.stdout)
