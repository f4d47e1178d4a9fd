"""Reads every file of a folder under guard, and prints what came of each as a line of JSON.

Usage: python -m tests.convert.mutation_worker FOLDER

The process may have MEMORY_BYTES more of memory than when it starts, and SECONDS for each file; beyond either it ends.
Whatever the interpreter reports while a file is read (an import, a call of the system, a file opened), other than
opening and mapping that very file, is listed.
"""

import codecs
import faulthandler
import hashlib
import json
import resource
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from rgbd_jax.pytorch.pytorch_file import read_pytorch
from rgbd_jax.pytorch.safetensors_file import read_safetensors
from tests.convert.torch_files import flat

MEMORY_BYTES = 512 << 20
SECONDS = 10
READERS = {".pth": read_pytorch, ".safetensors": read_safetensors}


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
        if self.path is None or harmless:
            return
        self.events.append(f"{event} {str(arguments)[:100]}")


def outcome(path: Path, watch: Watch) -> dict[str, Any]:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    watch.path, watch.events = path, []
    result: dict[str, Any]
    try:
        value = READERS[path.suffix](path)
        watch.path = None
        peak = tracemalloc.get_traced_memory()[1] - before
        content = {place: [*found[:-1], _digest(found[-1])] for place, found in flat(value).items()}
        result = {"outcome": "read", "content": content}
    except BaseException as error:
        watch.path = None
        peak = tracemalloc.get_traced_memory()[1] - before
        result = {"outcome": type(error).__name__, "message": str(error)}
    seconds = time.process_time() - start  # other work on the machine does not count
    faulthandler.cancel_dump_traceback_later()
    return {"file": path.name, **result, "seconds": seconds, "peak": peak, "events": watch.events}


def _digest(found: Any) -> str:
    return hashlib.sha256(found).hexdigest() if isinstance(found, bytes) else str(found)


def main() -> None:
    paths = sorted(Path(sys.argv[1]).iterdir())
    watch = Watch()
    tracemalloc.start()
    for path in paths[:3]:  # what Python loads on first use is loaded; likewise a codec that pickletools uses
        outcome(path, watch)
    codecs.lookup("raw-unicode-escape")
    limit_memory()
    for path in paths:
        print(json.dumps(outcome(path, watch)), flush=True)


if __name__ == "__main__":
    main()
