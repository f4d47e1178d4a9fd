"""Checksums of a checkpoint's files.

TensorStore verifies its index but not the chunks of data: most flipped bits in them would be restored unnoticed.
"""

import hashlib
import json
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
# Orbax writes the time of the commit into this file after everything else is done.
_WRITTEN_LATER = "_CHECKPOINT_METADATA"


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file under a folder to `CHECKSUMS_FILE` in it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS_FILE, _WRITTEN_LATER)]
    checksums = {str(path.relative_to(folder)): _sha256(path) for path in files}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=0, sort_keys=True))


def find_damage(folder: Path) -> str | None:
    """Returns which file of a checkpoint is damaged and how, None if all are as they were written."""
    file = folder / CHECKSUMS_FILE
    try:
        for name, checksum in json.loads(file.read_bytes()).items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if _sha256(folder / name) != checksum:
                return f"{folder / name} differs from what was written (checksum)"
    except (OSError, ValueError, AttributeError) as error:
        return f"{file} cannot be used: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
