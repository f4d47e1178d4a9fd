"""The process that `isolated.run_isolated` starts: `python -m rgbd_jax.tools.plan.worker FOLDER`."""

import json
import os
import pickle
import sys
import threading
import traceback
from pathlib import Path

from rgbd_jax.tools.plan.isolated import CALL, RESULT


def main(folder: Path) -> None:
    """Calls the function that a folder names and writes its result there, or the message of its ValueError."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, arguments = pickle.loads((folder / CALL).read_bytes())
    try:
        answer = {"result": function(*arguments)}
    except ValueError as error:
        traceback.print_exc()
        answer = {"error": str(error)}
    unfinished = folder / f"{RESULT}.tmp"
    unfinished.write_text(json.dumps(answer))
    unfinished.rename(folder / RESULT)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent's end is closed
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
