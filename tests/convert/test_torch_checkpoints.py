"""Checkpoints of real PyTorch: converted, they compute what was recorded; its SGD goes on here and there."""

import json
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_jax.initial_state import weights_for
from rgbd_jax.pytorch.__main__ import main
from rgbd_jax.pytorch.files import read_weights
from tests.convert.networks import manifest_of, small_config
from tests.convert.torch_files import flat
from tests.parity import recipe
from tests.test_parity import FOLDER, FORWARD, Case, assert_logits, evaluate

torch = pytest.importorskip("torch", reason="PyTorch is not installed: ./scripts/test.sh --torch installs it")
pytestmark = pytest.mark.optional

CASES = ("isogd_plain_64", "jester_nofrp_72", "thuread_heads_64", "ntu_rgb_128", "ntu_fusion_128")


def convert(*arguments):
    with mock.patch.object(sys, "argv", ["convert", *map(str, arguments)]):
        main()


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
    """In float64; both formats become the same converted checkpoint."""
    recorded = np.load(FOLDER / f"{name}.npz")
    manifest = json.loads((FOLDER / f"{name}.manifest.json").read_text())
    case = Case(recorded, json.loads(str(recorded["meta"])), manifest)
    model = Named(manifest, case.meta["seed"])
    assert list(model.state_dict()) == list(manifest)
    contents = {"model": model.state_dict(), "epoch": 3, "bestacc": 0.5}
    torch.save(contents, tmp_path / "zip.pth.tar")
    contents["model"] = {f"module.{key}": value for key, value in contents["model"].items()}
    torch.save(contents, tmp_path / "legacy.pth.tar", _use_new_zipfile_serialization=False)
    for form in ("zip", "legacy"):
        convert(tmp_path / f"{form}.pth.tar", tmp_path / form)
    zipped, legacy = (read_weights(tmp_path / form) for form in ("zip", "legacy"))
    assert flat(dict(zipped.tensors)) == flat(dict(legacy.tensors))
    assert zipped.record() == legacy.record()
    with jax.enable_x64(True):
        stream, _, clip, heat, labels, moment = case.build("float64")
        state = stream.state_of(*weights_for(stream, zipped, "zip"))
        state = jax.tree.map(jnp.asarray, state)
        output, _ = evaluate(stream, state, clip, heat, labels, moment, case.intermediates())
        assert_logits(output, case, FORWARD)


@pytest.fixture
def trained():
    """A network with the reference's names, and SGD after two steps; every fourth parameter had no gradient yet."""
    model = Named(manifest_of(small_config("fusion"), 3), 4).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    return model, optimizer


def step(model, optimizer, number):
    """One step of SGD on made-up gradients."""
    generator = torch.Generator().manual_seed(number)
    for index, parameter in enumerate(model.parameters()):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if index % 4 else None
    optimizer.step()


def save(model, optimizer, path, **options):
    contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2, "bestacc": 0.25}
    torch.save(contents, path, **options)


@pytest.mark.parametrize("zipped", [True, False])
def test_momentum_buffers_are_found_under_their_names(trained, tmp_path, zipped):
    model, optimizer = trained
    save(model, optimizer, tmp_path / "run.pth.tar", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "run.pth.tar", tmp_path / "run")
    found = read_weights(tmp_path / "run")
    expected = {
        name: optimizer.state[parameter]["momentum_buffer"].numpy()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }
    assert len(expected) > 100
    assert flat(dict(found.momentum)) == flat(expected)
    assert (found.epoch, found.best_accuracy, found.optimizer["weight_decay"]) == (2, 0.25, 1e-3)


@pytest.mark.parametrize("way", ["converted", "model.safetensors"])
def test_pytorch_goes_on_with_what_came_back(trained, tmp_path, way):
    """Model and optimizer load, safely and strictly, and their next step is that of the training that was saved."""
    model, optimizer = trained
    save(model, optimizer, tmp_path / "run.pth.tar")
    convert(tmp_path / "run.pth.tar", tmp_path / way)
    convert(tmp_path / way, tmp_path / "back.pth.tar")
    contents = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    assert (contents["epoch"], contents["bestacc"]) == (2, 0.25)
    other = Named(manifest_of(small_config("fusion"), 3), 5).float()
    other.load_state_dict(contents["model"], strict=True)
    again = torch.optim.SGD(other.parameters(), lr=1.0)
    again.load_state_dict(contents["optimizer"])
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    step(model, optimizer, 2)
    step(other, again, 2)
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
