"""Thousands of damaged and malicious checkpoint files: each is refused by name, or read as what it provably holds.

A process of its own reads them under limits of time and memory, while everything that the interpreter reports of
itself (imports, calls of the system, files opened) is recorded: see mutation_worker.
"""

import io
import json
import pickletools
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save

from rgbd_jax.pytorch.pytorch_file import write_pytorch
from tests.convert import malicious
from tests.convert.torch_files import flat, legacy_file, pickled, plain_sample, sample, zip_entries, zip_file, zip_of

ROOT = Path(__file__).parents[2]
# Peak of what is allocated while a file is read: a constant, and a multiple of the file's size. The last is only
# reached by files that are nothing but tiny containers (an empty set takes one byte there and 216 in memory, twice).
FREE_BYTES, MULTIPLE, MULTIPLE_OF_PICKLE = 2 << 20, 16, 512
SECONDS = 6

# Instructions whose argument is a value, so that another byte there is another value and no damage.
VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "PROTO", "BINPUT", "BINGET"}
# Instructions that another single byte turns into one that fits as well: True, False and None; containers.
ALIKE = {"NEWTRUE", "NEWFALSE", "NONE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "BINFLOAT", "BININT1"}


class Case(NamedTuple):
    """A file; `changed` is the position of its one changed byte."""

    base: str
    kind: str
    content: bytes
    changed: int = -1
    message: str = ""


def zip64_end(content: bytes) -> bytes:
    """The end of a zip file as PyTorch writes it, with a second record of 64 bits."""
    *_, count, length, begin, _ = struct.unpack("<4s4H2LH", content[-22:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, begin)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(content) - 22, 1)
    return content[:-22] + record + locator + content[-22:]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, bytes]:
    own = tmp_path_factory.mktemp("bases") / "model.pth"
    write_pytorch(own, plain_sample(sample()))
    arrays = {f"layer{index}.weight": np.arange(20, dtype=np.float32).reshape(4, 5) for index in range(4)}
    arrays |= {"counter": np.array(3), "half": np.ones(7, np.float16)}
    return {
        "zip": zip64_end(zip_file(sample())),
        "own": own.read_bytes(),
        "legacy": legacy_file(sample()),
        "safetensors": save(arrays, {"epoch": "3"}),
    }


def mutations(base: str, content: bytes, rng: random.Random, flips: int, others: int):
    yield Case(base, "none", content)
    ends = range(len(content) - 98, len(content))  # where the records at the end of a zip file are
    for at in (*ends, *(rng.randrange(len(content)) for _ in range(flips))):
        yield Case(base, "flip", content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :], at)
    for _ in range(others):
        yield Case(base, "cut", content[: rng.randrange(len(content))])
        at = rng.randrange(len(content))
        yield Case(base, "inserted", content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:], at)
        begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        yield Case(base, "removed", content[:begin] + content[end + 1 :], begin)


def valid_zips_of_flipped_pickles(rng: random.Random, count: int):
    """What an attacker does and damage does not: the checksums are right."""
    data, storages = pickled(sample())
    for _ in range(count):
        at = rng.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
        yield Case("pickle", "flip", zip_of(zip_entries(flipped, storages)), at)


@pytest.fixture(scope="module")
def results(tmp_path_factory, bases) -> list[tuple[Case, dict]]:
    """Every case and what came of it."""
    rng = random.Random(20231)
    folder = tmp_path_factory.mktemp("files")
    canary = tmp_path_factory.mktemp("canary") / "ran"
    cases = [
        *mutations("zip", bases["zip"], rng, 400, 60),
        *mutations("own", bases["own"], rng, 300, 40),
        *mutations("legacy", bases["legacy"], rng, 500, 80),
        *mutations("safetensors", bases["safetensors"], rng, 300, 60),
        *valid_zips_of_flipped_pickles(rng, 400),
        *(Case("malicious", name, content, message=message) for name, content, message in malicious.files(str(canary))),
    ]
    for index, case in enumerate(cases):
        suffix = ".safetensors" if case.base == "safetensors" else ".pth"
        (folder / f"{index:05d}{suffix}").write_bytes(case.content)
    command = [sys.executable, "-m", "tests.convert.mutation_worker", str(folder)]
    worker = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in worker.stdout.splitlines()]
    assert worker.returncode == 0, f"ended at file {len(lines)} ({cases[len(lines)][:2]}):\n{worker.stderr[-3000:]}"
    assert [line["file"][:5] for line in lines] == [f"{index:05d}" for index in range(len(cases))]
    assert not list(canary.parent.iterdir()), "a file ran what it contains"
    return list(zip(cases, lines, strict=True))


def of(results, *bases: str, kind: str | None = None):
    return [(case, found) for case, found in results if case.base in bases and kind in (None, case.kind)]


def refused(found: dict) -> bool:
    return found["outcome"] == "CheckpointFileError"


def changed_places(found: dict, original: dict) -> set[str]:
    now, then = found["content"], original["content"]
    return {place for place in now.keys() | then.keys() if now.get(place) != then.get(place)}


def original_of(results, base: str) -> dict:
    base = "zip" if base == "pickle" else base
    [(_, found)] = of(results, base, kind="none")
    assert found["outcome"] == "read"
    return found


def test_two_thousand_files_are_refused_by_name_or_read(results):
    assert len(results) >= 2000
    assert {found["outcome"] for _, found in results} == {"read", "CheckpointFileError"}
    for case, found in results:
        if refused(found):
            path, _, reason = found["message"].partition(": ")
            assert path.endswith(found["file"]), (case.base, case.kind, found)
            assert len(reason) > 20, (case.base, case.kind, found)
    counts = Counter((case.base, found["outcome"]) for case, found in results)
    print(sorted(counts.items()))


def test_nothing_runs(results):
    assert [(case.kind, found["events"]) for case, found in results if found["events"]] == []


def test_nothing_takes_long(results):
    slowest = max((found["seconds"], case.base, case.kind) for case, found in results)
    assert slowest[0] < SECONDS, slowest


def test_memory_is_bounded_by_the_size_of_the_file(results):
    containers = re.compile(r"(zip|legacy) (many|deep|marks|doubled|tens|colliding)")
    for case, found in results:
        multiple = MULTIPLE_OF_PICKLE if containers.match(case.kind) else MULTIPLE
        assert found["peak"] < FREE_BYTES + multiple * len(case.content), (case.base, case.kind, found["peak"])


def test_malicious_files_are_refused_for_what_they_are(results):
    cases = of(results, "malicious")
    assert len(cases) > 500
    for case, found in cases:
        assert refused(found), (case.kind, found)
        assert case.message in found["message"], (case.kind, found)


def harmless_bytes(content: bytes) -> set[int]:
    """Positions in a zip file that say nothing about the content: versions, times, attributes, padding."""
    harmless: set[int] = set()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        central = archive.start_dir
        for info in archive.infolist():
            local = info.header_offset
            name_length, extra_length = struct.unpack_from("<HH", content, local + 26)
            extra = local + 30 + name_length
            harmless |= {local + 4, local + 5, *range(local + 10, local + 14), *range(extra, extra + extra_length)}
            harmless |= {*range(central + 4, central + 8), *range(central + 12, central + 16)}
            harmless |= set(range(central + 36, central + 42))
            central += 46 + sum(struct.unpack_from("<3H", content, central + 28))
    if content[central : central + 4] == b"PK\x06\x06":
        harmless |= set(range(central + 12, central + 16))
    return harmless


@pytest.mark.parametrize("base", ["zip", "own"])
def test_every_change_of_a_zip_file_is_refused_unless_it_says_nothing(results, bases, base):
    harmless = harmless_bytes(bases[base])
    original = original_of(results, base)
    for case, found in of(results, base):
        if case.kind == "flip" and case.changed in harmless:
            assert refused(found) or not changed_places(found, original), (case.kind, case.changed)
        elif case.kind != "none":
            assert refused(found), (case.kind, case.changed, found)


def instruction_at(data: bytes, position: int) -> tuple[str, bool]:
    """Returns the instruction that a byte of a pickle belongs to, and whether it is the byte that names it."""
    last, begin = "", 0
    for instruction, _, at in pickletools.genops(data):
        if at > position:
            break
        last, begin = instruction.name, at
    return last, begin == position


def assert_another_value(data: bytes, position: int, found: dict) -> None:
    """A changed byte of a pickle without checksum may only have been taken for another value."""
    name, names_it = instruction_at(data, position)
    assert name in (ALIKE if names_it else VALUES), (name, names_it, position, found)


def test_a_changed_pickle_with_the_right_checksum_is_refused_or_another_value(results):
    data, _ = pickled(sample())
    cases = of(results, "pickle")
    for case, found in cases:
        if not refused(found):
            assert_another_value(data, case.changed, found)
    assert sum(refused(found) for _, found in cases) > len(cases) / 3


def test_a_change_of_the_older_format_is_refused_or_another_value(results, bases):
    content, original = bases["legacy"], original_of(results, "legacy")
    _, storages = pickled(sample(), legacy=True)
    pickles_end = len(content) - sum(8 + storage.nbytes for storage in storages)
    counts, values, end = set(), {}, pickles_end
    for storage in storages:
        counts |= set(range(end, end + 8))
        values |= dict.fromkeys(range(end + 8, end + 8 + storage.nbytes), storage)
        end += 8 + storage.nbytes
    begins, stream = [], io.BytesIO(content)
    for _ in range(5):
        begins.append(stream.tell())
        list(pickletools.genops(stream))
    for case, found in of(results, "legacy"):
        if refused(found) or case.kind == "none":
            continue
        assert case.kind == "flip", (case.kind, case.changed, found)
        assert case.changed not in counts
        if case.changed in values:
            # Only the tensors that look into the storage differ, and only in their values.
            for place in changed_places(found, original):
                (_, dtype, shape, _), (_, dtype_before, shape_before, _) = (
                    result["content"][place] for result in (found, original)
                )
                assert (dtype, shape) == (dtype_before, shape_before) == (str(values[case.changed].dtype), shape)
        else:
            begin = max(begin for begin in begins if begin <= case.changed)
            assert_another_value(content[begin:pickles_end], case.changed - begin, found)


def test_a_change_of_a_safetensors_file_is_refused_or_another_value(results, bases):
    content, original = bases["safetensors"], original_of(results, "safetensors")
    header_end = 8 + int.from_bytes(content[:8], "little")
    text = content[:header_end]
    # A name, a text of the metadata, the type, or a space at the end of the header.
    free = {at for found in re.finditer(rb'"[^"]*"| +$', text[8:]) for at in range(8 + found.start(), 8 + found.end())}
    kept = {at for found in re.finditer(rb'"(shape|data_offsets|__metadata__)"', text) for at in range(*found.span())}
    for case, found in of(results, "safetensors"):
        if refused(found) or case.kind == "none":
            continue
        assert case.kind == "flip", (case.kind, case.changed, found)
        changed = changed_places(found, original)
        if case.changed >= header_end:
            assert len(changed) == 1
            assert found["content"][min(changed)][:3] == original["content"][min(changed)][:3]
        else:
            assert case.changed in free - kept, (case.changed, text[case.changed - 8 : case.changed + 8], changed)


def test_the_samples_are_read_as_what_they_are(results):
    expected = {place: [*map(str, found[:-1])] for place, found in flat(plain_sample(sample())).items()}
    for base in ("zip", "own", "legacy"):
        content = original_of(results, base)["content"]
        read = {
            place: [str(tuple(part) if isinstance(part, list) else part) for part in found[:-1]]
            for place, found in content.items()
        }
        assert read == expected
