"""PyTorch itself and this package read each other's files; what is converted computes and trains as before."""

import argparse

import jax
import jax.numpy as jnp
import pytest

from rgbd_jax.initial_state import matching_weights
from rgbd_jax.models.name_table import ConversionError
from rgbd_jax.pytorch.torch_file import read_torch, write_torch
from rgbd_jax.pytorch.weights import read_weights
from rgbd_jax.step import new_state
from tests.parity import recipe
from tests.pytorch.networks import convert, manifest_of, small_config
from tests.pytorch.recorded import checkpoint, flat, plain
from tests.test_parity import FORWARD, Case, assert_logits, evaluate

torch = pytest.importorskip("torch", reason="PyTorch is not installed: ./scripts/test.sh --torch installs it")
pytestmark = pytest.mark.optional

CASES = ("isogd_plain_64", "jester_nofrp_72", "thuread_heads_64", "ntu_rgb_128", "ntu_fusion_128", "umdr_ntu16_112")
CASES += ("umdr_ntu_fusion16",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_writes(tmp_path, zipped, protocol):
    saved = checkpoint()
    path = tmp_path / "model.pth.tar"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert flat(read_torch(path)) == flat(plain(saved))


def test_torch_reads_and_maps_what_is_written(tmp_path):
    value = plain(checkpoint())
    del value["uint16"]  # the only type here without a storage class of its own
    write_torch(tmp_path / "model.pth.tar", value)
    for options in ({"weights_only": True}, {"weights_only": False}, {"mmap": True}):
        assert flat(plain(torch.load(tmp_path / "model.pth.tar", **options))) == flat(value)


def test_modules_and_programs_are_refused(tmp_path):
    for zipped in (True, False):
        torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ConversionError, match=r"torch\.nn\.modules\.linear\.Linear|storage in an unknown way"):
            read_weights(tmp_path / "model.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "model.pt")
    with pytest.raises(ConversionError, match="TorchScript"):
        read_weights(tmp_path / "model.pt")


class Named(torch.nn.Module):
    """A module whose state dict has given names and shapes, in their order, and values of `recipe`."""

    def __init__(self, manifest, seed):
        super().__init__()
        for name, value in recipe.state_dict(manifest, seed).items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            if leaf in ("running_mean", "running_var", "num_batches_tracked"):
                module.register_buffer(leaf, torch.tensor(value))
            else:
                module.register_parameter(leaf, torch.nn.Parameter(torch.tensor(value)))


@pytest.mark.parametrize("name", CASES)
def test_converted_checkpoint_gives_the_recorded_logits(tmp_path, name):
    """In float64; both formats become the same converted checkpoint. Frozen networks have files of their own."""
    case = Case(name)
    manifest = case.manifest
    state, frozen = Named(manifest, case.meta["seed"]).state_dict(), []
    assert case.family.frozen or list(state) == list(manifest)
    for part in case.family.frozen:
        prefix = f"Modalit_{part}."
        names = [key for key in state if key.startswith(prefix)]
        torch.save({"model": {key.removeprefix(prefix): state.pop(key) for key in names}}, tmp_path / f"{part}.pth.tar")
        frozen.append(f"--{part}={tmp_path / part}.pth.tar")
    contents = {"model": state, "epoch": 3, "bestacc": 0.5, "model_ema": None}
    contents["args"] = argparse.Namespace(data="/data", splits=["train"], temp=(0.04, 0.07))
    torch.save(contents, tmp_path / "zip.pth.tar")
    contents["model"] = {f"module.{key}": value for key, value in contents["model"].items()}
    torch.save(contents, tmp_path / "legacy.pth.tar", _use_new_zipfile_serialization=False)
    for form in ("zip", "legacy"):
        convert(tmp_path / f"{form}.pth.tar", tmp_path / form, *frozen)
    zipped, legacy = (read_weights(tmp_path / form) for form in ("zip", "legacy"))
    assert flat(dict(zipped.tensors)) == flat(dict(legacy.tensors))
    assert zipped.record() == legacy.record()
    with jax.enable_x64(True):
        network, _, batch, schedule = case.build("float64")
        state = jax.tree.map(jnp.asarray, new_state(network, *matching_weights(network, zipped)))
        output, _ = evaluate(network, state, batch, schedule, case.intermediates())
        assert_logits(output, case, FORWARD)


def step(model, optimizer, number):
    """One step of SGD on made-up gradients; every fourth parameter has none."""
    generator = torch.Generator().manual_seed(number)
    for index, parameter in enumerate(model.parameters()):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if index % 4 else None
    optimizer.step()


def sgd(model, stream, lr):
    """The optimizer of the reference; that of UMDR has two groups, as timm makes them."""
    if not stream.startswith("umdr_"):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    groups = [{"params": [], "weight_decay": 0.0}, {"params": [], "weight_decay": 1e-3}]
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and not name.endswith(".bias")]["params"].append(parameter)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("stream", "way", "zipped"),
    [("fusion", "converted", True), ("fusion", "model.safetensors", False), ("umdr_rgb", "converted", False)],
)
def test_pytorch_resumes_from_what_came_back(tmp_path, stream, way, zipped):
    """Model and optimizer load, safely and strictly, and their next step is that of the training that was saved."""
    manifest = manifest_of(small_config(stream), 3)
    model = Named(manifest, 4).float()
    optimizer = sgd(model, stream, 0.01)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2, "bestacc": 0.25}
    torch.save(contents, tmp_path / "run.pth.tar", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "run.pth.tar", tmp_path / way)
    momentum = {
        name: optimizer.state[parameter]["momentum_buffer"].numpy()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }
    assert flat(dict(read_weights(tmp_path / way).momentum)) == flat(momentum)

    convert(tmp_path / way, tmp_path / "back.pth.tar")
    contents = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    assert (contents["epoch"], contents["bestacc"]) == (2, 0.25)
    other = Named(manifest, 5).float()
    other.load_state_dict(contents["model"], strict=True)
    again = sgd(other, stream, 1.0)
    again.load_state_dict(contents["optimizer"])
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    step(model, optimizer, 2)
    step(other, again, 2)
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
