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
from tests.pytorch.recorded import flat

MEMORY_BYTES = 512 << 20
SECONDS = 60
events: list[str] = []
reading: Path | None = None


def watch(event: str, arguments: tuple) -> None:
    harmless = event in ("mmap.__new__", "builtins.id") or (event == "open" and arguments[0] == str(reading))
    if reading is not None and not harmless:
        events.append(f"{event} {str(arguments)[:100]}")


def outcome(path: Path) -> dict[str, Any]:
    global reading
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    events.clear()
    reading, weights, result = path, None, {"outcome": "read"}
    try:
        weights = read_weights(path)
        if weights.family is not None:
            weights.detect()
    except BaseException as error:
        result = {"outcome": type(error).__name__, "message": str(error)}
    reading = None
    peak = tracemalloc.get_traced_memory()[1] - before
    seconds = time.process_time() - start  # other work on the machine does not count
    faulthandler.cancel_dump_traceback_later()
    if weights is not None:
        content = {"tensors": dict(weights.tensors), "momentum": dict(weights.momentum), **weights.record()}
        result |= {"content": flat(content)}
    return {"file": path.name, **result, "seconds": seconds, "peak": peak, "events": list(events)}


def main() -> None:
    paths = sorted(Path(sys.argv[1]).iterdir())
    sys.addaudithook(watch)
    tracemalloc.start()
    b"x".decode("cp437")  # what Python loads on first use is loaded: zipfile's codec of old names, and more
    for path in [*paths[:2], paths[-1]]:
        outcome(path)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in paths:
        print(json.dumps(outcome(path)), flush=True)


if __name__ == "__main__":
    main()
