"""Reading and writing PyTorch's checkpoint files, against files made here by other means (see torch_files)."""

import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from rgbd_jax.pytorch.names import ConversionError
from rgbd_jax.pytorch.torch_file import read_torch, write_torch
from rgbd_jax.pytorch.weights import read_weights
from tests.pytorch.malicious import HUGE, tensor
from tests.pytorch.torch_files import (
    SYSTEM,
    flat,
    legacy_file,
    legacy_of,
    pickled,
    plain_sample,
    sample,
    zip_entries,
    zip_file,
    zip_of,
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("make", [zip_file, legacy_file])
def test_reads_both_formats_bit_by_bit(tmp_path, make, protocol):
    path = tmp_path / "any_name.jpeg"  # the format is recognised by the content
    path.write_bytes(make(sample(), protocol=protocol))
    assert flat(read_torch(path)) == flat(plain_sample(sample()))
    weights = read_weights(path)
    assert flat(dict(weights.tensors)) == flat(
        {name.removeprefix("module."): tensor for name, tensor in plain_sample(sample())["model"].items()}
    )
    assert (weights.epoch, weights.best_accuracy) == (3, 0.8125)
    assert weights.left_out[-1].startswith("optimizer: of 2 parameters, the model has")
    assert "args: not part of the network" in weights.left_out


def test_arrays_are_read_only_views_of_a_zip_file(tmp_path):
    weights = np.arange(1 << 24, dtype=np.float32)
    path = tmp_path / "model.pth"
    path.write_bytes(zip_file({"a": weights, "tied": weights}))
    tracemalloc.start()
    value = read_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert np.array_equal(value["a"], weights)
    with pytest.raises(ValueError, match="read-only"):
        value["tied"][0] = 1
    assert np.shares_memory(value["a"], value["tied"])


def test_the_stride_of_an_axis_of_length_one_may_be_anything(tmp_path):
    path = tmp_path / "model.pth"
    storage = np.arange(3, dtype=np.float32)
    path.write_bytes(zip_of(zip_entries(tensor(b"K\x03", b"K\x01K\x03\x86", HUGE + b"K\x01\x86"), [storage])))
    assert read_torch(path)[0].tolist() == [[0, 1, 2]]


def test_round_trip(tmp_path):
    value = plain_sample(sample())
    value |= {
        "complex": np.ones((2, 3), np.complex64),
        "big_endian": np.arange(3, dtype=">i4"),
        "turned": np.eye(3)[1:].T,
    }
    value["twice"] = [value["turned"], value["turned"]]
    path = tmp_path / "model.pth"
    write_torch(path, value)
    expected = {**value, "big_endian": np.arange(3, dtype="<i4")}
    assert flat(read_torch(path)) == flat(expected)
    write_torch(path, read_torch(path))  # over the file that the arrays look into
    assert flat(read_torch(path)) == flat(expected)
    arrays = [*value.values(), *value["model"].values(), value["optimizer"]["state"][0]["momentum_buffer"]]
    distinct = {id(array) for array in arrays if isinstance(array, np.ndarray)}
    write_torch(path, value)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        assert sum("/data/" in name for name in archive.namelist()) == len(distinct)
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


def _zip(**changes: bytes | None) -> bytes:
    entries = zip_entries(*pickled({"a": np.arange(3.0)}))
    changed = entries | {f"model.pth/{name}": content for name, content in changes.items() if content is not None}
    return zip_of(
        {name: data for name, data in changed.items() if changes.get(name.removeprefix("model.pth/"), b"") is not None}
    )


OTHER_FILES = {
    "empty": (b"", "the file is empty: download it again"),
    "html": (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "an HTML page.*open the link in a"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer.*git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00", "compressed: unpack"),
    "tar": (_tar(), "a tar archive: unpack it"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle that torch.save did not write; it was not opened"),
    "unknown": (b"\x00\x01\x02\x03", r"it begins with b'\\x00\\x01"),
    "zip of a file": (zip_of({"model.pth.tar": b"x"}), "a zip archive that torch.save did not write.*unpack it first"),
    "no pickle": (_zip(**{"data.pkl": None}), "torch.save did not write"),
    "torchscript": (_zip(**{"constants.pkl": b""}), "TorchScript archive save the weights"),
    "compressed": (zip_of({"a/data.pkl": bytes(99)}, compression=8), "'a/data.pkl' is compressed.*zip -0"),
    "large": (_zip(**{"data.pkl": bytes((8 << 20) + 1)}), "its data.pkl has more than 8388608 bytes"),
    "big-endian zip": (_zip(byteorder=b"big"), "byte order 'big', expected 'little': load and save"),
    "big-endian": (legacy_of(b"\x80\x02N.", [], system={**SYSTEM, "little_endian": False}), "byte order 'big'"),
    "storage missing": (_zip(**{"data/0": None}), "storage '0' is missing, expected 3 x float64"),
    "storage short": (_zip(**{"data/0": bytes(20)}), "storage '0' has 20 bytes, expected 3 x float64"),
    "no such storage": (legacy_of(*pickled(np.zeros(3), legacy=True), keys=["1"]), "list of storages is damaged"),
    "cut": (legacy_file(np.zeros(3))[:-1], "storage '0' does not have 3 elements"),
    "goes on": (legacy_file(np.zeros(3)) + b"x", "goes on after the last storage"),
    "list": (zip_file([1]), "holds a list; expected a dict with a state dict"),
    "nothing": (zip_file({}), "no state dict under 'model'; found nothing"),
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
