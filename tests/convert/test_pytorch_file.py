"""Reading and writing PyTorch's checkpoint files, against files made here by other means (see torch_files)."""

import io
import pickle
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rgbd_jax.pytorch.checkpoint_file import CheckpointFileError, sniff
from rgbd_jax.pytorch.pytorch_file import read_pytorch, write_pytorch
from tests.convert.torch_files import (
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
)  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("make", [zip_file, legacy_file])
def test_reads_both_formats_bit_by_bit(tmp_path, make, protocol):
    path = tmp_path / "any_name.jpeg"  # the content tells the format
    path.write_bytes(make(sample(), protocol=protocol))
    assert sniff(path) == {zip_file: "pytorch_zip", legacy_file: "pytorch_legacy"}[make]
    assert flat(read_pytorch(path)) == flat(plain_sample(sample()))


@pytest.mark.parametrize("make", [zip_file, legacy_file])
def test_arrays_are_read_only_views_of_the_file(tmp_path, make):
    weights = np.arange(1 << 24, dtype=np.float32)  # 64 MiB, four times the most that is read of a pickle
    path = tmp_path / "model.pth"
    path.write_bytes(make({"a": weights, "tied": weights}))
    tracemalloc.start()
    value = read_pytorch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    assert np.array_equal(value["a"], weights)
    with pytest.raises(ValueError, match="read-only"):
        value["tied"][0] = 1
    assert np.shares_memory(value["a"], value["tied"])


def test_part_of_a_storage(tmp_path):
    """Files of the first versions of PyTorch name parts of a storage: (key, first element, number of elements)."""
    base = np.arange(10, dtype=np.int32)
    data, _ = pickled({"part": base[:4]}, legacy=True)
    whole, part = b"K\x04Nt", b"K\x0a(X\x01\x00\x00\x00vK\x03K\x04tt"
    assert data.count(whole) == 1
    path = tmp_path / "model.pth"
    path.write_bytes(legacy_of(data.replace(whole, part), [base]))
    assert read_pytorch(path)["part"].tolist() == [3, 4, 5, 6]
    path.write_bytes(legacy_of(data.replace(whole, part.replace(b"K\x03", b"K\x07")), [base]))
    with pytest.raises(CheckpointFileError, match=r"elements 7 to 11 of 10 do not exist"):
        read_pytorch(path)


ARRAYS = st.sampled_from(
    ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128"]
).flatmap(lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)))
KEYS = st.one_of(st.text(max_size=5), st.integers(-(2**59), 2**59), st.binary(max_size=3))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**200), 2**200), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    ARRAYS, ARRAYS.map(lambda array: array.T), st.sets(st.text(max_size=3), max_size=3),
    hnp.arrays("float32", (2, 3)).map(lambda array: array.astype(ml_dtypes.bfloat16)),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(value=VALUES)
def test_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("round_trip") / "model.pth"
    write_pytorch(path, value)
    assert flat(read_pytorch(path)) == flat(value)
    first = path.read_bytes()
    write_pytorch(path, read_pytorch(path))  # over the file that the arrays look into
    assert path.read_bytes() == first


def test_written_file_in_the_eyes_of_zipfile_and_pickle(tmp_path):
    """Python's own reader of zip files and unpickler find what the format's description demands."""
    value = plain_sample(sample())
    write_pytorch(tmp_path / "model.pth", value)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "torch._utils":
                return lambda storage, offset, shape, strides, *_: np.lib.stride_tricks.as_strided(
                    storage[offset:], shape, [stride * storage.itemsize for stride in strides]
                )
            return name if module == "torch" else super().find_class(module, name)

        def persistent_load(self, identity):
            kind, storage_class, key, location, numel = identity
            assert (kind, location) == ("storage", "cpu")
            dtype = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "LongStorage": "i8",
                     "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
                     "BoolStorage": "?", "BFloat16Storage": ml_dtypes.bfloat16}[storage_class]  # fmt: skip
            storage = np.frombuffer(archive.read(f"archive/data/{key}"), dtype)
            assert storage.size == numel
            return storage

    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        raw = (tmp_path / "model.pth").read_bytes()
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", raw, info.header_offset + 26)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0
        found = Unpickler(io.BytesIO(archive.read("archive/data.pkl"))).load()
    assert flat(found) == flat(value)


def test_an_array_that_occurs_twice_is_stored_once(tmp_path):
    weights = np.ones(100_000, np.float32)
    write_pytorch(tmp_path / "model.pth", {"a": weights, "b": [weights]})
    assert (tmp_path / "model.pth").stat().st_size < 1.1 * weights.nbytes


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": [1, object()]}, TypeError, r"value\['a'\]\[1\] is a builtins.object"),
        ({"a": np.zeros(2, "U3")}, TypeError, r"value\['a'\] is an array of <U3, expected one of"),
        ({(1, 2): 3}, TypeError, "a tuple; expected text"),
        ([2**3000], ValueError, r"value\[0\]: an integer of 376 bytes"),
        (["x" * (17 << 20)], ValueError, "besides tensors, expected at most 16777216"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, value, error, message):
    path = tmp_path / "model.pth"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        write_pytorch(path, value)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("model.pth", b"before")]


def test_a_value_that_contains_itself_is_not_written(tmp_path):
    value: list = []
    value.append(value)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        write_pytorch(tmp_path / "model.pth", value)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    write_pytorch(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_pytorch(path, {"a": np.ones(3)})
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("model.pth", before)]


def test_written_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    write_pytorch(tmp_path / "model.pth", [])
    assert (tmp_path / "model.pth").stat().st_mode == (tmp_path / "other").stat().st_mode


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return out.getvalue()


def _entries(**changes: bytes | None) -> dict[str, bytes]:
    entries = zip_entries(*pickled({"a": np.arange(3.0)}))
    for name, content in changes.items():
        entry = f"model.pth/{name.replace('_', '.') if name == 'data_pkl' else name}"
        if content is None:
            del entries[entry]
        else:
            entries[entry] = content
    return entries


def _linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in _entries().items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if name.endswith("data/0") else 0
            archive.writestr(info, content)
    return out.getvalue()


def _tensor_pickle(shape: bytes, strides: bytes, offset: bytes = b"K\x00") -> bytes:
    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ"
    call = offset + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02]ctorch._utils\n_rebuild_tensor_v2\n" + storage + call + b"a."


def _tensor_file(*numbers: bytes) -> bytes:
    return zip_of(zip_entries(_tensor_pickle(*numbers), [np.zeros(3, np.float32)]))


OTHER_FILES = {
    "empty": (b"", "the file is empty: download it again"),
    "html": (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "an HTML page.*open the link in a"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer.*git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00", "gzip-compressed: unpack"),
    "tar": (_tar(), "a tar archive: unpack it"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle that torch.save did not write; it was not opened"),
    "unknown": (b"\x00\x01\x02\x03", r"it begins with b'\\x00\\x01"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
    "zip of a file": (zip_of({"model.pth.tar": b"x"}), "a zip archive that torch.save did not write.*unpack it first"),
    "no pickle": (zip_of(_entries(data_pkl=None)), "did not write: expected one folder with data.pkl"),
    "two roots": (zip_of({**_entries(), "b/data.pkl": b""}), "did not write: expected one folder"),
    "no version": (zip_of(_entries(version=None)), "did not write"),
    "version": (zip_of(_entries(version=b"11\n")), "its version is b'11', expected 1 to 10"),
    "torchscript": (zip_of(_entries(**{"constants.pkl": b""})), "a TorchScript archive"),
    "compressed": (
        zip_of(_entries(**{"data/0": bytes(24)}), compression=zipfile.ZIP_DEFLATED, descriptors=False),
        r"'model.pth/data.pkl' is compressed \(method 8.*zip -0",
    ),
    "link": (_linked(), "'model.pth/data/0' is encrypted, a symbolic link"),
    "big-endian zip": (zip_of(_entries(byteorder=b"big")), "byte order 'big', expected 'little': load and save"),
    "big-endian": (legacy_of(b"\x80\x02N.", [], system={**SYSTEM, "little_endian": False}), "byte order 'big'"),
    "storage missing": (zip_of(_entries(**{"data/0": None})), "the data of storage '0' is missing"),
    "storage short": (zip_of(_entries(**{"data/0": bytes(20)})), r"has 20 bytes, expected 3 x float64 = 24 bytes"),
    "path above": (zip_of({"../data.pkl": b""}), r"an entry named '../data.pkl'; expected a plain relative path"),
    "absolute path": (zip_of({"/etc/data.pkl": b""}), r"an entry named '/etc/data.pkl'"),
    "backslash": (zip_of({"a\\data.pkl": b""}), "an entry named"),
    "goes on": (zip_of(_entries(data_pkl=b"\x80\x02N.N.")), "goes on after the end of the pickle"),
    "outside": (
        _tensor_file(b"K\x02\x85", b"K\x01\x85", b"K\x02"),
        r"strides \(1,\) and offset 2 does not",
    ),
    "negative": (
        _tensor_file(b"K\x02\x85", b"J\xff\xff\xff\xff\x85", b"K\x02"),
        r"strides \(-1,\) and offset 2",
    ),
    "no stride": (_tensor_file(b"K\x02\x85", b")"), r"strides \(\) and offset 0 does not lie"),
    "overflow": (
        _tensor_file(b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"),
        "does not lie within its storage",
    ),
    "enormous": (_tensor_file(b"J\x00\x00\x00\x7f\x85", b"K\x00\x85"), "more than 8 times as large as the file"),
    "enormous, empty": (
        _tensor_file(b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", b"K\x00K\x00\x86"),
        "does not lie within its storage",
    ),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_says_what_is_wrong_and_what_to_do(tmp_path, name):
    content, message = OTHER_FILES[name]
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=rf"(?s)^{path}: .*{message}"):
        read_pytorch(path)


def test_truth_values_other_than_0_and_1(tmp_path):
    data, _ = pickled(np.array([True, False]))
    path = tmp_path / "model.pth"
    path.write_bytes(zip_of(zip_entries(data, [np.array([1, 2], np.uint8)])))
    with pytest.raises(CheckpointFileError, match="truth values holds bytes other than 0 and 1"):
        read_pytorch(path)


def test_the_stride_of_an_axis_of_length_one_may_be_anything(tmp_path):
    path = tmp_path / "model.pth"
    far = b"\x8a\x08" + b"\x00" * 7 + b"\x02"
    path.write_bytes(_tensor_file(b"K\x01K\x03\x86", far + b"K\x01\x86"))
    assert read_pytorch(path)[0].tolist() == [[0, 0, 0]]


def test_two_entries_of_one_name(tmp_path):
    content = zip_of({**_entries(), "model.pth/data/1": b"x"}).replace(b"model.pth/data/1", b"model.pth/data/0")
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=r"two entries named 'model\.pth/data/0'"):
        read_pytorch(path)


def test_a_missing_file_and_a_folder_stay_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pytorch(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError):
        read_pytorch(tmp_path)
