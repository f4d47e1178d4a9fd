"""Print a script that completes commands, arguments and file names in a shell.

rgbd completion bash > ~/.local/share/bash-completion/completions/rgbd
"""

import argparse
import importlib
from typing import Any

import shtab

from rgbd_jax.cli import COMMANDS
from rgbd_jax.cli import add_arguments as add_arguments_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="the shell that reads the script")


def run(args: argparse.Namespace) -> None:
    """Prints the script."""
    parser = argparse.ArgumentParser("rgbd")
    commands = parser.add_subparsers()
    groups: dict[str, Any] = {}
    for name, (module, text) in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = commands.add_parser(group, help="prepare data sets").add_subparsers()
        command = groups.get(group, commands).add_parser(word, help=text)
        add_arguments_of(command, importlib.import_module(module))
        for action in command._actions:
            if action.type is not None and getattr(action.type, "__name__", "") == "Path":
                action.complete = shtab.FILE
    print(shtab.complete(parser, args.shell))
