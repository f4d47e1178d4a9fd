"""The directory of a zip file that PyTorch wrote, checked byte by byte before anything in it is used.

PyTorch stores its entries uncompressed and one after the other. Only such files are read: the entries must cover the
file without gap or overlap, the two descriptions of each must agree, and each must match its CRC-32. Left unchecked
are times, versions, attributes other than that of a symbolic link, and what fills the space before an entry's data.
"""

import stat
import struct
import zlib
from typing import BinaryIO, NamedTuple

from rgbd_jax.pytorch.checkpoint_file import RefusedError

END = struct.Struct("<4s4H2LH")
END_64_LOCATOR = struct.Struct("<4sLQL")
END_64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # stand for "see the 64-bit field"
HAS_DESCRIPTOR, UTF_8 = 0x8, 0x800
# What may follow an entry's data: the CRC-32 and both sizes, of 32 or 64 bits, with or without a signature.
DESCRIPTORS = tuple(struct.Struct(form) for form in ("<LLL", "<4sLLL", "<LQQ", "<4sLQQ"))
CHUNK_BYTES = 1 << 20
INCOMPLETE = "the file is damaged or incomplete: download or copy it again and compare its size"


class Entry(NamedTuple):
    """An uncompressed entry: its name, where its header and its data begin, its size in bytes and its CRC-32."""

    name: str
    header: int
    flags: int
    start: int
    size: int
    crc: int


def read_directory(file: BinaryIO, size: int) -> dict[str, Entry]:
    """Returns the entries of a zip file by name, with every one's CRC-32 verified.

    Args:
        file: the open file.
        size: its size in bytes.

    Raises:
        RefusedError: the file is damaged, or is not as PyTorch writes it.
    """
    try:
        listed = _central_directory(file, size)
        entries = _in_place(file, *listed)
    except struct.error as error:
        raise RefusedError(f"its zip directory ends too early; {INCOMPLETE}") from error
    for entry in entries.values():
        if _crc_32(file, entry) != entry.crc:
            raise RefusedError(f"the entry {entry.name!r} does not match its checksum (CRC-32); {INCOMPLETE}")
    return entries


def _read(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _central_directory(file: BinaryIO, size: int) -> tuple[list[Entry], int]:
    """Returns the entries in the order of the file (`start` still unknown) and where the central directory begins."""
    position = size - END.size
    if position < 0 or _read(file, position, 4) != b"PK\x05\x06":
        raise RefusedError(f"the zip archive has no end record at its end; {INCOMPLETE}")
    _, *disks, listed, total, length, begin, comment = END.unpack(_read(file, position, END.size))
    locator = _read(file, max(position - END_64_LOCATOR.size, 0), END_64_LOCATOR.size)
    if locator.startswith(b"PK\x06\x07"):
        _, disk, position_64, disk_count = END_64_LOCATOR.unpack(locator)
        fields = END_64.unpack(_read(file, min(position_64, size), END_64.size))
        signature, record_size, _, _, *disks_64, listed_64, total_64, length_64, begin_64 = fields
        narrow, wide = (listed, total, length, begin), (listed_64, total_64, length_64, begin_64)
        agree = all(a in (b, full) for a, b, full in zip(narrow, wide, (FULL_16,) * 2 + (FULL_32,) * 2, strict=True))
        ends = position_64 + END_64.size == position - END_64_LOCATOR.size and record_size == END_64.size - 12
        if signature != b"PK\x06\x06" or disk or disk_count != 1 or any(disks_64) or not agree or not ends:
            raise RefusedError(f"the two end records of the zip archive disagree; {INCOMPLETE}")
        position, (listed, total, length, begin) = position_64, wide
    if any(disks) or comment or listed != total or begin + length != position or length < total * CENTRAL.size:
        raise RefusedError(f"the zip archive's directory is not where its end record says; {INCOMPLETE}")
    directory, entries, at = _read(file, begin, length), [], 0
    for _ in range(total):
        entry, at = _listed_entry(directory, at)
        entries.append(entry)
    if at != length:
        raise RefusedError(f"the zip archive's directory has another length than its end record says; {INCOMPLETE}")
    return sorted(entries, key=lambda entry: entry.header), begin


def _listed_entry(directory: bytes, at: int) -> tuple[Entry, int]:
    fields = CENTRAL.unpack_from(directory, at)
    (
        signature,
        _,
        _,
        flags,
        method,
        _,
        _,
        crc,
        packed,
        size,
        name_length,
        extra_length,
        comment,
        disk,
        _,
        mode,
        header,
    ) = fields
    name_end = at + CENTRAL.size + name_length
    end = name_end + extra_length + comment
    if signature != b"PK\x01\x02" or end > len(directory) or disk:
        raise RefusedError(f"the zip archive's directory is damaged; {INCOMPLETE}")
    name = _checked_name(directory[at + CENTRAL.size : name_end])
    if name.split("/")[1:2] in (["code"], ["constants.pkl"]):
        raise RefusedError(
            "a TorchScript archive (torch.jit.save), which contains a program; save the weights instead: "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    size, packed, header = _widened(directory[name_end : name_end + extra_length], size, packed, header)
    if method or packed != size:
        raise RefusedError(
            f"the entry {name!r} is compressed (method {method}, {packed} to {size} bytes), which PyTorch never does: "
            f"unpack the archive and pack it again uncompressed (zip -0 -r)"
        )
    if flags & ~(HAS_DESCRIPTOR | UTF_8) or stat.S_ISLNK(mode >> 16):
        raise RefusedError(
            f"the entry {name!r} is encrypted, a symbolic link or of another kind that PyTorch never uses"
        )
    return Entry(name, header, flags, -1, size, crc), end


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(f"the zip archive has an entry whose name is not text ({raw[:40]!r})") from error
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise RefusedError(f"the zip archive has an entry named {name[:80]!r}; expected a plain relative path")
    return name


def _widened(extra: bytes, *values: int) -> list[int]:
    """Returns the values with those that say "see the 64-bit field" taken from the extra data."""
    at = 0
    while FULL_32 in values and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])
            return [next(wide, (value,))[0] if value == FULL_32 else value for value in values]
        at += 4 + length
    return list(values)


def _in_place(file: BinaryIO, listed: list[Entry], directory_begin: int) -> dict[str, Entry]:
    """Returns the entries with the place of their data, having checked that they follow each other without gap."""
    entries: dict[str, Entry] = {}
    expected = 0
    for entry, end in zip(listed, [*(entry.header for entry in listed[1:]), directory_begin], strict=True):
        if entry.name in entries:
            raise RefusedError(f"the zip archive has two entries named {entry.name!r}")
        local = _read(file, entry.header, LOCAL.size)
        signature, _, flags, method, _, _, *sizes, name_length, extra_length = LOCAL.unpack(local)
        start = entry.header + LOCAL.size + name_length + extra_length
        rest = end - start - entry.size
        name = _read(file, entry.header + LOCAL.size, name_length)
        unknown = (0, FULL_32) if flags & HAS_DESCRIPTOR else (FULL_32,)
        agree = all(
            a == b or a in unknown for a, b in zip(sizes, (entry.crc, entry.size, entry.size), strict=True)
        ) and (sizes[0] == entry.crc or bool(flags & HAS_DESCRIPTOR))
        if signature != b"PK\x03\x04" or (flags, method, name) != (entry.flags, 0, entry.name.encode()) or not agree:
            raise RefusedError(f"the entry {entry.name!r} is described in two ways that disagree; {INCOMPLETE}")
        if entry.header != expected or not (rest == 0 or flags & HAS_DESCRIPTOR):
            raise RefusedError(f"the entries of the zip archive overlap or leave gaps at {entry.name!r}; {INCOMPLETE}")
        if flags & HAS_DESCRIPTOR and not _describes(_read(file, start + entry.size, max(rest, 0)), entry):
            raise RefusedError(f"the entry {entry.name!r} has another size than the zip archive says; {INCOMPLETE}")
        entries[entry.name] = entry._replace(start=start)
        expected = end
    return entries


def _describes(descriptor: bytes, entry: Entry) -> bool:
    for form in DESCRIPTORS:
        if form.size == len(descriptor):
            *signature, crc, packed, size = form.unpack(descriptor)
            return signature in ([], [b"PK\x07\x08"]) and (crc, packed, size) == (entry.crc, entry.size, entry.size)
    return False


def _crc_32(file: BinaryIO, entry: Entry) -> int:
    # Read, not mapped: so checking a large file does not fill the process with its pages.
    crc, left = 0, entry.size
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max(left, 1))))
    file.seek(entry.start)
    while left:
        count = file.readinto(buffer[: min(len(buffer), left)])  # type: ignore[attr-defined]
        if not count:
            break
        crc = zlib.crc32(buffer[:count], crc)
        left -= count
    return crc
