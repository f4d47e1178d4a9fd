"""The cards of converted weights: of a run, of a file of PyTorch, in safetensors. The folder loads with one in it."""

import re

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from rgbd_jax.pytorch.files import read_weights
from tests.convert.networks import checkpoint, manifest_of, random_state_dict, small_config
from tests.convert.test_convert import convert
from tests.convert.torch_files import zip_file
from tests.tiny import save_run, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run of the demo's depth stream, evaluated once."""
    return save_run(tiny_config("data", "depth"), tmp_path_factory.mktemp("runs") / "depth")


def rows(card):
    return dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", card, re.MULTILINE))


def test_of_a_run_all_that_the_run_tells(run, tmp_path):
    convert(run, tmp_path / "converted")
    card = (tmp_path / "converted" / "MODEL_CARD.md").read_text()
    told = rows(card)
    assert told["converted from"] == f"`{run}`"
    assert told["top-1"] == "50.00%"
    assert (told["top-5"], told["clips"], told["trained on"]) == ("not recorded",) * 3
    assert told["input"] == "8 depth frames of a clip, 3 channels, 32x32 pixels"
    assert told["depth is shown as"].startswith("linear from 500 to 2500 mm, colours jet")
    assert "0 swipe_left, " in card
    expected = read_weights(run)
    counted = sum(t.size for n, t in expected.tensors.items() if "running" not in n and "tracked" not in n)
    assert told["size"] == f"{counted:,} parameters, width 0.125"
    # The folder loads with the card in it.
    found = read_weights(tmp_path / "converted").tensors
    assert found.keys() == expected.tensors.keys()
    assert all(np.array_equal(found[name], tensor) for name, tensor in expected.tensors.items())


def test_of_a_file_what_its_tensors_tell_and_not_more(tmp_path):
    tensors = random_state_dict(manifest_of(small_config("rgb"), 3))
    (tmp_path / "rgb.pth.tar").write_bytes(zip_file(checkpoint(tensors)))
    convert(tmp_path / "rgb.pth.tar", tmp_path / "converted")
    card = (tmp_path / "converted" / "MODEL_CARD.md").read_text()
    told, noted = rows(card), checkpoint(tensors)
    assert told["best accuracy that the training noted"] == f"{noted['bestacc']:.2%}"
    assert told["epochs"] == f"{noted['epoch']} done"
    unknown = (
        "data set",
        "trained on",
        "evaluated on",
        "started from",
        "git revision",
        "of which clips, and by which rule",
    )
    assert [told[name] for name in unknown] == ["not recorded"] * len(unknown)
    assert "model-index" not in yaml.safe_load(card.split("---\n")[1])
    convert(tmp_path / "converted", tmp_path / "back.safetensors")
    with safe_open(tmp_path / "back.safetensors", framework="np") as file:
        kept = rows(file.metadata()["model_card"])
    assert kept["converted from"] == f"`{tmp_path / 'converted'}`"
    assert kept["size"] == told["size"]
    convert(tmp_path / "back.safetensors", tmp_path / "again.pth.tar")
    assert not list(tmp_path.glob("*.md"))
