"""Reads every file of a folder under guard, and prints what came of each as a line of JSON.

Usage: python -m tests.pytorch.mutation_worker FOLDER

The process may have MEMORY_BYTES more of memory than when it starts, and SECONDS for each file; beyond either it ends.
Whatever the interpreter reports while a file is read (an import, a call of the system, a file opened), other than
opening and mapping that very file, is listed.
"""

import faulthandler
import json
import resource
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from rgbd_jax.pytorch.weights import read_weights
from tests.pytorch.torch_files import flat

MEMORY_BYTES = 512 << 20
SECONDS = 60


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Watch:
    """Collects the interpreter's audit events while `path` is set."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        harmless = event in ("mmap.__new__", "builtins.id") or (event == "open" and arguments[0] == str(self.path))
        if self.path is not None and not harmless:
            self.events.append(f"{event} {str(arguments)[:100]}")


def outcome(path: Path, watch: Watch) -> dict[str, Any]:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    watch.path, watch.events = path, []
    result: dict[str, Any]
    try:
        weights = read_weights(path)
        watch.path = None
        content = {"tensors": dict(weights.tensors), "momentum": dict(weights.momentum), **weights.record()}
        result = {"outcome": "read", "content": {place: str(found) for place, found in flat(content).items()}}
    except BaseException as error:
        result = {"outcome": type(error).__name__, "message": str(error)}
    watch.path = None
    peak = tracemalloc.get_traced_memory()[1] - before
    seconds = time.process_time() - start  # other work on the machine does not count
    faulthandler.cancel_dump_traceback_later()
    return {"file": path.name, **result, "seconds": seconds, "peak": peak, "events": watch.events}


def main() -> None:
    paths = sorted(Path(sys.argv[1]).iterdir())
    watch = Watch()
    tracemalloc.start()
    for path in [*paths[:2], paths[-1]]:  # what Python loads on first use is loaded
        outcome(path, watch)
    limit_memory()
    for path in paths:
        print(json.dumps(outcome(path, watch)), flush=True)


if __name__ == "__main__":
    main()
