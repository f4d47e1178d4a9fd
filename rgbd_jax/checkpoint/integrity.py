"""Checksums of a checkpoint's files, so that damage is noticed, and named, before anything is read."""

import json
import zlib
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
# Orbax writes the time of the commit into this file after everything else is done.
_CHANGES_AFTERWARDS = "_CHECKPOINT_METADATA"
_BLOCK = 2**22


def write_checksums(folder: Path) -> None:
    """Writes size and CRC-32 of every file under a folder into the folder.

    Raises:
        OSError: a file cannot be read, or the checksums cannot be written.
    """
    found = {str(path.relative_to(folder)): [path.stat().st_size, _crc(path)] for path in _files(folder)}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(found, indent=0, sort_keys=True))


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with a folder's files, None if they are as they were written.

    A folder without checksums, of an older version, passes.
    """
    file = folder / CHECKSUMS_FILE
    if not file.exists():
        return None
    try:
        recorded = {name: tuple(entry) for name, entry in json.loads(file.read_bytes()).items()}
        for name, (size, crc) in recorded.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes, {size} were written"
            if _crc(path) != crc:
                return f"{path} is not what was written: its checksum differs"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{file} cannot be used: {error}"
    return None


def _files(folder: Path) -> list[Path]:
    skipped = (CHECKSUMS_FILE, _CHANGES_AFTERWARDS)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
