"""Checkpoint files that PyTorch 2.13 wrote, in `recorded/`, and what is in them.

`python -m tests.pytorch.recorded` writes them anew (it needs PyTorch): both formats, with pickles of two protocols.
"""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rgbd_jax.pytorch.torch_file import STORAGE_TYPES

FOLDER = Path(__file__).parent / "recorded"
FILES = [FOLDER / f"{form}{protocol}.pth" for form in ("zip", "legacy") for protocol in (2, 4)]


def flat(value: Any, place: str = "") -> dict[str, str]:
    """Returns place -> type and content of every value in a tree; an OrderedDict counts as a dict."""
    if isinstance(value, np.ndarray):
        return {place: f"{value.dtype} {value.shape} {value.tobytes().hex()}"}
    if isinstance(value, dict):
        items = {f"{place}/{key!r}": item for key, item in value.items()}
    elif type(value) in (list, tuple):
        items = {f"{place}/{index}": item for index, item in enumerate(value)}
    else:
        assert type(value) in (str, bytes, int, float, bool, type(None)), (place, type(value))
        return {place: f"{type(value).__name__} {value!r}"}
    result = {place: f"{type(value).__name__.removeprefix('Ordered').lower()} of {len(items)}"}
    for inner, item in items.items():
        result |= flat(item, inner)
    return result


def expected() -> dict[str, str]:
    """Returns what reading any of the files has to give, `flat`."""
    return json.loads((FOLDER / "values.json").read_text())


def entries() -> dict[str, bytes]:
    """Returns the entries of a recorded zip file."""
    with zipfile.ZipFile(FILES[0]) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def checkpoint() -> dict[str, Any]:
    """Returns a network of PyTorch, its optimizer after a step, and every type of tensor and value."""
    import torch

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
        "best": [np.float32(0.1), np.int64(3), np.bool_(True), True, None, "text", b"\xff", 1.5, {1}, (1,), -(2**80)],
        "tensors": {
            name: (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, name)) for name in STORAGE_TYPES.values()
        },
        "views": [base, base.t(), base[1:3, ::2], base[0].expand(3, 6), torch.zeros(0, 3), torch.tensor(2.5)],
        "parameter": torch.nn.Parameter(base[2]),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "device": torch.device("cuda:1"),
        "size": torch.Size([3, 4]),
        "args": argparse.Namespace(device=torch.device("cpu"), type=torch.bfloat16),
    }


def plain(value: Any) -> Any:
    """Returns what this package reads in place of a value of PyTorch."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        bfloat16 = value.dtype == torch.bfloat16
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if bfloat16 else value.numpy()
    if isinstance(value, torch.device):
        return value.type
    if isinstance(value, argparse.Namespace):
        return {}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(plain(item) for item in value)
    return list(value) if isinstance(value, set) else value


def main() -> None:
    import torch

    saved = checkpoint()
    FOLDER.mkdir(exist_ok=True)
    for path in FILES:
        zipped = path.name.startswith("zip")
        torch.save(saved, path, _use_new_zipfile_serialization=zipped, pickle_protocol=int(path.stem[-1]))
    (FOLDER / "values.json").write_text(json.dumps(flat(plain(saved)), indent=1) + "\n")


if __name__ == "__main__":
    main()
