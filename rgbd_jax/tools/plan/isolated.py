"""Runs a compiler in a process of its own: what it prints and whether it dies do not matter to this one."""

import json
import logging
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from rgbd_jax.tools.plan.targets import COMPILERS

PROGRESS_SECONDS = 30
CALL, RESULT, _MESSAGES = "call.pickle", "result.json", "messages"
_CHILD = f"import sys; from {__name__} import main; main(sys.argv[1])"
_SHOWN = 20  # last lines of a compiler that failed
_NO_MEMORY = re.compile(r"bad_alloc|LLVM ERROR: out of memory|[Cc]annot allocate memory|allocation failed|MemoryError")

log = logging.getLogger("rgbd_jax")


def run_isolated(what: str, compile_only: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns a function's result, a JSON-able value, from a process of its own; logs how long it has taken.

    With `compile_only` that process uses no device of this machine but the CPU.

    Raises:
        ValueError: the function raised it.
        MemoryError: this machine's memory did not suffice.
        ChildProcessError: the function failed otherwise; the message ends with what its process printed last.
    """
    log.info("%s ...", what)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CALL).write_bytes(pickle.dumps((function, arguments)))
        with (folder / _MESSAGES).open("wb") as messages:
            command = [sys.executable, "-c", _CHILD, name]
            options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": messages, "stderr": messages}
            process = subprocess.Popen(command, env=_environment(compile_only), **options)
            try:
                while process.poll() is None:
                    try:
                        process.wait(PROGRESS_SECONDS)
                    except subprocess.TimeoutExpired:
                        log.info("%s: %.0f s", what, time.monotonic() - started)
            finally:
                process.kill()
                process.wait()
        text = (folder / _MESSAGES).read_text(errors="replace")
        if not (folder / RESULT).exists():
            raise _failure(what, process.returncode, text)
        log.debug("%s", text)
        log.info("%s: done in %.0f s", what, time.monotonic() - started)
        answer = json.loads((folder / RESULT).read_text())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


def main(folder: str) -> None:
    """Calls, in its process, the function that a folder names; writes its result there, or its ValueError's message."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, arguments = pickle.loads(Path(folder, CALL).read_bytes())
    try:
        answer = {"result": function(*arguments)}
    except ValueError as error:
        traceback.print_exc()
        answer = {"error": str(error)}
    unfinished = Path(folder, f"{RESULT}.tmp")
    unfinished.write_text(json.dumps(answer))
    unfinished.rename(Path(folder, RESULT))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent's end is closed
    os._exit(1)


def _environment(compile_only: bool) -> dict[str, str]:
    """Returns the variables of the other process: it imports what this one imports, and uses its compilation cache."""
    path, environment = [*filter(None, sys.path)], {**os.environ}
    if cache := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    if compile_only:
        path.append(str(COMPILERS))
        # libtpu would ask a cloud machine's metadata server for its TPUs, and refuse a second process beside this one.
        environment |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def _failure(what: str, status: int, messages: str) -> Exception:
    if status == -signal.SIGKILL or _NO_MEMORY.search(messages):
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest child, KiB
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return MemoryError(
            f"{what}: the compiler ran out of this machine's memory; it held {used:.1f} of {whole:.1f} GiB. Close "
            "other programs, use a larger machine, or lower config.train.batch_size, config.clip.frames or "
            "config.clip.size"
        )
    last = "\n  ".join(messages.rstrip().splitlines()[-_SHOWN:])
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return ChildProcessError(f"{what}: the compiler failed ({ended}); it printed last:\n  {last}")
