"""Thousands of damaged and malicious checkpoint files: each is refused by name, or read as what it provably holds.

A process of its own reads them under limits of time and memory, while everything that the interpreter reports of
itself (imports, calls of the system, files opened) is recorded: see mutation_worker.
"""

import io
import json
import random
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save

from rgbd_jax.pytorch.torch_file import read_torch, write_torch
from tests.pytorch import malicious
from tests.pytorch.networks import checkpoint, manifest_of, random_state_dict, small_config
from tests.pytorch.recorded import FILES

ROOT = Path(__file__).parents[2]
# Peak of what is allocated while a file is read: a constant, and a multiple of the file's size. The last is only
# reached by pickles that are nothing but tiny containers (a dict takes one byte there and 64 in memory).
FREE_BYTES, MULTIPLE, MULTIPLE_OF_PICKLE = 4 << 20, 16, 256
SECONDS = 6
METADATA = {"rgbd_jax": '{"epoch": 3, "best_accuracy": 0.5, "optimizer": {"lr": 0.1}, "class_names": ["a", "b"]}'}


NETWORKS = ("rgb", "umdr_rgb")  # one of each family


class Case(NamedTuple):
    """A file; `changed` is the position of its one changed byte."""

    base: str
    kind: str
    content: bytes
    changed: int = -1
    message: str = ""


def mutations(base: str, content: bytes, rng: random.Random, flips: int, others: int, end: int = 98):
    yield Case(base, "none", content)
    ends = range(len(content) - end, len(content))  # where the records at the end of a zip file are
    for at in (*ends, *(rng.randrange(len(content)) for _ in range(flips))):
        yield Case(base, "flip", content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :], at)
    for _ in range(others):
        yield Case(base, "cut", content[: rng.randrange(len(content))])
        at = rng.randrange(len(content))
        yield Case(base, "inserted", content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:], at)
        begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        yield Case(base, "removed", content[:begin] + content[end + 1 :], begin)


def flipped_pickles(base: str, content: bytes, rng: random.Random, count: int):
    """What an attacker does and damage does not: the checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    data = entries[name]
    for _ in range(count):
        at = rng.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
        yield Case(base, "flip", malicious.zip_of(entries | {name: flipped}), at)


def written(path: Path, value: dict) -> bytes:
    """Returns the file that this package writes of a value."""
    write_torch(path, value)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)])
def results(tmp_path_factory, request) -> list[tuple[Case, dict]]:
    """Every case and what came of it; when slow, more than 3,000 of PyTorch's files and of safetensors."""
    scale, rng = request.param, random.Random(20230 + request.param)
    of_safetensors = 1 if scale == 1 else 15
    folder, canary = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("canary") / "ran"
    value = read_torch(FILES[0])
    del value["uint16"]  # the only type there without a storage class of its own
    own = written(folder / "own", value)
    networks = {
        stream: random_state_dict(manifest_of(small_config(stream, width=0.0625), 3), "float16") for stream in NETWORKS
    }
    arrays = {f"layer{index}.weight": np.arange(20, dtype=np.float32).reshape(4, 5) for index in range(4)}
    cases = [
        *mutations("zip", FILES[0].read_bytes(), rng, 200 * scale, 30 * scale),
        *mutations("own", own, rng, 150 * scale, 20 * scale),
        *mutations("legacy", FILES[2].read_bytes(), rng, 250 * scale, 40 * scale),
        *mutations(
            "safetensors",
            save({**arrays, "counter": np.array(3)}, METADATA),
            rng,
            150 * of_safetensors,
            30 * of_safetensors,
        ),
        *flipped_pickles("pickle", FILES[0].read_bytes(), rng, 200 * scale),
        *(
            case
            for stream, tensors in networks.items()
            for case in (
                *mutations(stream, save(tensors, METADATA), rng, 40, 10, end=0),
                *flipped_pickles("network", written(folder / "own", checkpoint(tensors)), rng, 15),
            )
        ),
        *(Case("malicious", name, content, message=message) for name, content, message in malicious.files(str(canary))),
    ]
    counts = Counter("safetensors" if case.base == "safetensors" else "PyTorch" for case in cases)
    assert scale == 1 or min(counts.values()) > 3000
    for index, case in enumerate(cases):
        (folder / f"{index:05d}").write_bytes(case.content)
    command = [sys.executable, "-m", "tests.pytorch.mutation_worker", str(folder)]
    worker = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300 * scale)
    lines = [json.loads(line) for line in worker.stdout.splitlines()]
    assert worker.returncode == 0, f"ended at file {len(lines)} ({cases[len(lines)][:2]}):\n{worker.stderr[-3000:]}"
    assert [line["file"] for line in lines] == [f"{index:05d}" for index in range(len(cases))]
    assert not list(canary.parent.iterdir()), "a file ran what it contains"
    return list(zip(cases, lines, strict=True))


def accepted(results, *bases: str):
    """Yields the changed files of some kinds that were read, each with what was read and what of it is changed."""
    originals = {case.base: found["content"] for case, found in results if case.kind == "none"}
    for case, found in results:
        if case.base in bases and case.kind != "none" and found["outcome"] == "read":
            now, then = found["content"], originals["zip" if case.base == "pickle" else case.base]
            yield case, now, {place for place in now.keys() | then.keys() if now.get(place) != then.get(place)}


def test_two_thousand_files_are_refused_by_name_or_read(results):
    """Nothing runs, nothing takes long, and memory is bounded by the size of the file."""
    assert len(results) >= 2000
    assert sum(case.base == "malicious" for case, _ in results) > 450
    for case, found in results:
        what = case.base, case.kind, found
        allowed = ("ConversionError",) if case.base == "malicious" else ("read", "ConversionError")
        assert found["outcome"] in allowed, what
        assert case.message in found.get("message", ""), what
        if found["outcome"] != "read":
            path, _, reason = found["message"].partition(": ")
            assert path.endswith(found["file"]), what
            assert len(reason) > 20, what
        assert found["events"] == [], what
        assert found["seconds"] < SECONDS, what
        containers = case.kind.startswith(("zip", "legacy"))  # of the malicious ones
        limit = FREE_BYTES + (MULTIPLE_OF_PICKLE if containers else MULTIPLE) * len(case.content)
        assert found["peak"] < limit, what


def test_what_is_read_from_changed_files(results):
    """A zip file is as it was but for what says nothing of the content; without checksum a value may be another one."""
    for case, _, changed in accepted(results, "zip", "own"):
        assert not changed, (case.base, case.kind, case.changed, changed)
    for case, _, changed in accepted(results, "legacy", "safetensors", *NETWORKS):
        assert case.kind == "flip" or not changed, (case.base, case.kind, case.changed, changed)
    flips = [found["outcome"] for case, found in results if case.base == "pickle"]
    assert flips.count("ConversionError") > len(flips) / 3
