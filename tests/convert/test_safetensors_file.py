"""Reading and writing safetensors files, against the format's description: length, header in JSON, values."""

import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rgbd_jax.pytorch.checkpoint_file import CheckpointFileError, sniff
from rgbd_jax.pytorch.pytorch_file import read_pytorch, write_pytorch
from rgbd_jax.pytorch.safetensors_file import read_safetensors, write_safetensors
from tests.convert.torch_files import flat

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": ml_dtypes.bfloat16, "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def file_of(header: dict, values: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def described(kind: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_both_ways(tmp_path, kind):
    array = (np.arange(6).reshape(2, 3) % 2).astype(TYPES[kind])
    path = tmp_path / "any_name"
    path.write_bytes(
        file_of({"a.b": described(kind, [2, 3], 0, array.nbytes), "__metadata__": {"x": "y"}}, array.tobytes())
    )
    assert sniff(path) == "safetensors"
    tensors, metadata = read_safetensors(path)
    assert (flat(tensors), metadata) == (flat({"a.b": array}), {"x": "y"})
    write_safetensors(path, {"a.b": array}, {"x": "y"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length]) == {
        "a.b": described(kind, [2, 3], 0, array.nbytes),
        "__metadata__": {"x": "y"},
    }
    assert content[8 + length :] == array.tobytes()


ARRAYS = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, bool]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)
TENSORS = st.dictionaries(st.text(max_size=8), st.one_of(ARRAYS, ARRAYS.map(lambda array: array.T)), max_size=5)


@settings(max_examples=100, deadline=None)
@given(tensors=TENSORS, metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_round_trip(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("round_trip") / "model"
    write_safetensors(path, tensors, metadata)
    found, found_metadata = read_safetensors(path)
    assert {name: flat(array) for name, array in found.items()} == {k: flat(array) for k, array in tensors.items()}
    assert found_metadata == metadata
    assert not any(array.flags.writeable for array in found.values())


def test_big_endian_arrays_are_turned(tmp_path):
    write_safetensors(tmp_path / "model", {"a": np.arange(3, dtype=">i4")})
    assert flat(read_safetensors(tmp_path / "model")[0]) == flat({"a": np.arange(3, dtype="<i4")})


def test_reading_copies_nothing(tmp_path):
    write_safetensors(tmp_path / "model", {"a": np.ones(1 << 24, np.float32), "b": np.zeros(1 << 20)})
    tracemalloc.start()
    tensors, _ = read_safetensors(tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert tensors["a"].sum() == 1 << 24


BAD_FILES = {
    "header": (struct.pack("<Q", 4) + b"{abc", "not a sound safetensors file"),
    "gap": (file_of({"a": described("U8", [1], 1, 2)}, b"ab"), "not a sound safetensors file"),
    "overlap": (
        file_of({"a": described("U8", [2], 0, 2), "b": described("U8", [2], 1, 3)}, b"abc"),
        "not a sound safetensors file",
    ),
    "short": (file_of({"a": described("F32", [2], 0, 8)}, b"abcd"), "not a sound safetensors file"),
    "shape": (file_of({"a": described("F32", [3], 0, 8)}, bytes(8)), "not a sound safetensors file"),
    "type": (file_of({"a": described("F8_E4M3", [1], 0, 1)}, b"a"), "'a' is of type F8_E4M3, expected one of F64"),
    "dimensions": (file_of({"a": described("F32", [1] * 80, 0, 4)}, b"abcd"), "'a' cannot be of shape"),
    "bool": (file_of({"a": described("BOOL", [1], 0, 1)}, b"a"), "'a' of truth values holds bytes other than 0 and 1"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_says_what_is_wrong(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=f"^{path}: .*{message}"):
        read_safetensors(path)


def test_each_reader_names_the_other(tmp_path):
    write_safetensors(tmp_path / "model.pth", {"a": np.zeros(2)})
    with pytest.raises(CheckpointFileError, match="read it with read_safetensors"):
        read_pytorch(tmp_path / "model.pth")
    write_pytorch(tmp_path / "model.safetensors", {"a": np.zeros(2)})
    with pytest.raises(CheckpointFileError, match="read it with read_pytorch"):
        read_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"a": np.zeros(2, "U3")}, {}, TypeError, "a is an array of <U3, expected one of"),
        ({"__metadata__": np.zeros(2)}, {}, ValueError, "cannot be named __metadata__"),
        ({"a": np.zeros(2)}, {"epoch": 3}, TypeError, "metadata"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, tensors, metadata, error, message):
    path = tmp_path / "model"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        write_safetensors(path, tensors, metadata)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("model", b"before")]


def test_written_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "model", {})
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode
