"""One side of a comparison in a process of its own: no library of one side slows the other, memory is told apart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]


class Worker:
    """A process that answers calls, one at a time.

    Args:
        module: a module of this package whose `serve()` the process runs.
        settings: what it is told at its start, JSON-able.
        environment: variables beside those of this process.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]):
        command = [sys.executable, "-c", f"from benchmarking import {module}; {module}.serve()", json.dumps(settings)]
        path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=SCRIPTS.parent,
            env={**os.environ, **environment, "PYTHONPATH": path},
        )  # fmt: skip

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the worker and returns its answer.

        Raises:
            RuntimeError: the worker has ended; what it said is on stderr.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the process that was to {name} ended with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def settings() -> dict[str, Any]:
    """Returns what the worker was told at its start."""
    return json.loads(sys.argv[1])


def answer(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answers calls until there are none; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answers.write(json.dumps(functions[name](*arguments)) + "\n")
        answers.flush()
