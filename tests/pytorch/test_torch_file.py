"""Reading files that PyTorch wrote (see `recorded`), writing them again, and what is said of any other file."""

import io
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from rgbd_jax.models.name_table import ConversionError
from rgbd_jax.pytorch.torch_file import read_torch, write_torch
from rgbd_jax.pytorch.weights import read_weights
from tests.conftest import ROOT
from tests.pytorch.malicious import HUGE, legacy_file, tensor, zip_file, zip_of
from tests.pytorch.recorded import FILES, entries, expected, flat


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reads_what_pytorch_wrote_bit_by_bit(tmp_path, path):
    copy = tmp_path / "any_name.jpeg"  # the format is recognised by the content
    copy.write_bytes(path.read_bytes())
    assert flat(read_torch(copy)) == expected()
    weights, prefix = read_weights(copy), "/'model'"
    model = {place.removeprefix(prefix): what for place, what in expected().items() if place.startswith(prefix)}
    assert flat(dict(weights.tensors)) == model
    buffers = [what for place, what in expected().items() if place.endswith("/'momentum_buffer'")]
    assert list(flat(list(weights.momentum.values())).values())[1:] == buffers
    assert len(buffers) == 6
    assert (weights.epoch, weights.best_accuracy, weights.optimizer["weight_decay"]) == (7, 0.75, 3e-4)
    assert "args: not part of the network" in weights.left_out


def test_arrays_are_read_once(tmp_path):
    weights = np.arange(1 << 24, dtype=np.float32)
    write_torch(tmp_path / "model.pth", {"a": weights, "tied": weights})
    tracemalloc.start()
    value = read_torch(tmp_path / "model.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < weights.nbytes + (4 << 20)
    assert np.array_equal(value["a"], weights)
    assert np.shares_memory(value["a"], value["tied"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_shrinks_is_an_error_or_read_and_never_ends_the_process(tmp_path, suffix):
    """In a process of its own, which a signal (SIGBUS) would end."""
    path, arrays = tmp_path / f"model{suffix}", {f"a{number}": np.ones(1 << 20, np.float32) for number in range(8)}
    (write_torch if suffix == ".pth" else lambda *x: save_file(*x[::-1]))(path, arrays)
    program = f"""
import os, threading
from rgbd_jax.models.name_table import ConversionError
from rgbd_jax.pytorch.weights import read_weights
content = open({str(path)!r}, "rb").read()
for delay in (0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.05):
    open({str(path)!r}, "wb").write(content)
    cut = threading.Timer(delay, os.truncate, ({str(path)!r}, 100_000))
    cut.start()
    try:
        weights = read_weights({str(path)!r})
        cut.join()
        assert all(tensor.sum() == 1 << 20 for tensor in weights.tensors.values())
    except ConversionError as error:
        assert "damaged" in str(error)
    cut.join()
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_stride_of_an_axis_of_length_one_may_be_anything(tmp_path):
    (tmp_path / "model.pth").write_bytes(zip_file(tensor(b"K\x03", b"K\x01K\x03\x86", HUGE + b"K\x01\x86")))
    assert read_torch(tmp_path / "model.pth")["0"].tobytes() == bytes(range(12))


def test_round_trip(tmp_path):
    value = read_torch(FILES[0])
    del value["uint16"]  # the only type there without a storage class of its own
    turned = np.eye(3)[1:].T
    value["twice"] = [turned, turned]
    path = tmp_path / "model.pth"
    write_torch(path, value)
    assert flat(read_torch(path)) == flat(value)
    write_torch(path, read_torch(path))
    assert flat(read_torch(path)) == flat(value)
    write_torch(path, value)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        arrays = [what for what in flat(value).values() if ") " in what]
        assert sum("/data/" in name for name in archive.namelist()) == len(arrays) - 1
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", path.read_bytes(), info.header_offset + 26)
            assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"before")
    with pytest.raises(ConversionError, match="PyTorch has no tensors of <U3, expected float64"):
        write_torch(path, {"a": np.zeros(2, "U3")})
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("model.pth", b"before")]


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return out.getvalue()


def _zip(name: str, content: bytes | None) -> bytes:
    changed = entries() | {f"zip2/{name}": content}
    return zip_of({name: data for name, data in changed.items() if data is not None})


ONE = tensor(b"K\x03", b"K\x03\x85", b"K\x01\x85")
OTHER_FILES = {
    "empty": (b"", "the file is empty: download it again"),
    "html": (b"\n<!DOCTYPE html><html><title>Google Drive", "an HTML or XML page.*open the link in a browser"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an HTML or XML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer.*git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00", "compressed: unpack"),
    "tar": (_tar(), "a tar archive: unpack it"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle that torch.save did not write; it was not opened"),
    "unknown": (b"\x00\x01\x02\x03", r"it begins with b'\\x00\\x01"),
    "zip of a file": (zip_of({"model.pth.tar": b"x"}), "a zip archive that torch.save did not write.*unpack it first"),
    "no pickle": (_zip("data.pkl", None), "torch.save did not write"),
    "torchscript": (_zip("constants.pkl", b""), "TorchScript archive save the weights"),
    "compressed": (zip_of({"a/data.pkl": bytes(99)}, compression=8), "'a/data.pkl' is compressed.*zip -0"),
    "large": (_zip("data.pkl", bytes((8 << 20) + 1)), "its data.pkl has more than 8388608 bytes"),
    "big-endian zip": (_zip("byteorder", b"big"), "byte order 'big', expected 'little': load and save"),
    "big-endian": (legacy_file(b"\x80\x02N.", little_endian=False), "byte order 'big'"),
    "storage missing": (_zip("data/0", None), "storage '0' is missing, expected 162 x float32"),
    "storage short": (_zip("data/0", bytes(20)), "storage '0' has 20 bytes, expected 162 x float32"),
    "no such storage": (legacy_file(ONE, ("1",)), "list of storages is damaged"),
    "cut": (legacy_file(ONE, ("0",))[:-1], "storage '0' does not have 3 elements"),
    "goes on": (legacy_file(ONE, ("0",)) + b"x", "continues after the last storage"),
    "list": (zip_file(pickle.dumps([1], 2)), "holds a list; expected a dict with a state dict"),
    "nothing": (zip_file(pickle.dumps({}, 2)), "no state dict under 'model'; found nothing"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_says_what_is_wrong_and_what_to_do(tmp_path, name):
    content, message = OTHER_FILES[name]
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=rf"(?s)^{path}: .*{message}"):
        read_weights(path)


def test_a_missing_file_stays_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")
