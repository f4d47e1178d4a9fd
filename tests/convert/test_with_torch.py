"""PyTorch itself reads what the package writes, and the package reads what PyTorch writes, bit by bit."""

import numpy as np
import pytest

from rgbd_jax.pytorch.checkpoint_file import CheckpointFileError, sniff
from rgbd_jax.pytorch.pytorch_file import read_pytorch, write_pytorch
from tests.convert.torch_files import flat, plain_sample, sample

torch = pytest.importorskip("torch", reason="PyTorch is not installed; to run these: ./scripts/test.sh --torch")
pytestmark = pytest.mark.optional

TYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8",
         "uint8", "bool")  # fmt: skip
FORMATS = {"pytorch_zip": True, "pytorch_legacy": False}


def checkpoint() -> dict:
    """A network, its optimizer after a step, and every type of tensor and value."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3), torch.nn.BatchNorm3d(3), torch.nn.Linear(4, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=3e-4)
    model(torch.randn(2, 2, 4, 4, 6)).sum().backward()
    optimizer.step()
    base = torch.randn(4, 6)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "bestacc": np.float64(0.75),
        "best": [np.float32(0.1), np.int64(3), np.bool_(True), True, None, "text", b"\xff", 1.5, {1, 2}, (1,)],
        "tensors": {name: (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, name)) for name in TYPES},
        "views": [base, base.t(), base[1:3, ::2], base[0].expand(3, 6), torch.zeros(0, 3), torch.tensor(2.5)],
        "parameter": torch.nn.Parameter(base[2]),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
        "size": torch.Size([3, 4]),
    }


def array(tensor):
    """The array of a tensor, without this package."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def plain(value):
    if isinstance(value, torch.Tensor):
        return array(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, torch.device | torch.dtype):
        return str(value)
    if isinstance(value, dict):
        return type(value)((key, plain(item)) for key, item in value.items())
    return type(value)(plain(item) for item in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMATS)
def test_reads_what_torch_writes(tmp_path, form, protocol):
    saved = checkpoint()
    path = tmp_path / "model.pth.tar"
    torch.save(saved, path, _use_new_zipfile_serialization=FORMATS[form], pickle_protocol=protocol)
    assert sniff(path) == form
    assert flat(read_pytorch(path)) == flat(plain(saved))


def test_torch_reads_what_is_written(tmp_path):
    value = plain(checkpoint())
    del value["uint16"]  # the only type here without a storage class of its own
    write_pytorch(tmp_path / "model.pth.tar", value)
    for weights_only in (True, False):
        assert flat(plain(torch.load(tmp_path / "model.pth.tar", weights_only=weights_only))) == flat(value)


def test_torch_maps_what_is_written(tmp_path):
    """torch.load(mmap=True) needs every storage where the directory says, aligned."""
    value = plain_sample(sample())
    write_pytorch(tmp_path / "model.pth", value)
    assert flat(plain(torch.load(tmp_path / "model.pth", mmap=True))) == flat(value)


@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_module_is_refused(tmp_path, form):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 3), path, _use_new_zipfile_serialization=FORMATS[form])
    with pytest.raises(CheckpointFileError, match=r"torch\.nn\.modules\.linear\.Linear|no storage"):
        read_pytorch(path)


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.raises(CheckpointFileError, match="TorchScript"):
        read_pytorch(path)
