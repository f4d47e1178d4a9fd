"""Stand-ins for compilers that end badly, for the process that runs them."""

import os
import sys
import time


def answer(number: float) -> dict[str, object]:
    """Returns what the process sees."""
    names = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY")
    time.sleep(0.5)
    return {"twice": 2 * number, **{name: os.environ.get(name) for name in names}}


def refuse() -> None:
    """Raises what a caller's mistake is reported by."""
    raise ValueError("config.train.batch_size=3 is not divisible")


def die(message: str, signal: int) -> None:
    """Prints a message and ends as a compiler does that the system or itself stops."""
    sys.stderr.write(f"noise\n{message}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal)
