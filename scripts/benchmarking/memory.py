"""The largest memory that this process, or its accelerator, has held since it was last asked."""

import ctypes
import re
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Starts a new measurement; what was freed is given back to the system first. Linux alone can do so."""
    if not _CLEAR.exists():
        return
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")


def peak() -> int | None:
    """Returns the most bytes that were resident at once since `forget_peak`; None where nobody counts them."""
    if not _STATUS.exists():
        return None
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return 1024 * int(found)
