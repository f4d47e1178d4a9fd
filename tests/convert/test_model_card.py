"""The model card of converted weights: of a run, of a PyTorch file, and within a safetensors file."""

import re

import pytest
import yaml
from safetensors import safe_open

from rgbd_jax.checkpoint.model_card import UNKNOWN, ModelCardData, render_model_card
from tests.convert.networks import checkpoint, manifest_of, random_state_dict, small_config
from tests.convert.test_convert import convert
from tests.convert.torch_files import zip_file
from tests.tiny import save_run, tiny_config


def rows(card):
    return dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", card, re.MULTILINE))


def test_the_card_of_a_run_that_is_converted(tmp_path):
    run = save_run(tiny_config("data", "depth"), tmp_path / "run")
    convert(run, tmp_path / "converted")
    card = (tmp_path / "converted" / "MODEL_CARD.md").read_text()
    table = rows(card)
    assert (table["converted from"], table["top-1"]) == (f"`{run}`", "50.00%")
    assert {table[name] for name in ("top-5", "clips", "trained on", "started from")} == {UNKNOWN}
    assert table["input"] == "8 depth frames of a clip, 3 channels, 32x32 pixels"
    assert table["depth encoding"].startswith("linear from 500 to 2500 mm, colours jet")
    assert re.fullmatch(r"\d+,\d+ parameters, width 0.125", table["size"])
    assert "Classes, by label: 0 swipe_left, 1 " in card


def test_the_card_of_a_pytorch_file_says_what_is_not_recorded(tmp_path):
    contents = checkpoint(random_state_dict(manifest_of(small_config("rgb"), 3)))
    (tmp_path / "rgb.pth.tar").write_bytes(zip_file(contents))
    convert(tmp_path / "rgb.pth.tar", tmp_path / "converted")
    card = (tmp_path / "converted" / "MODEL_CARD.md").read_text()
    table = rows(card)
    assert table["best accuracy recorded by the training"] == f"{contents['bestacc']:.2%}"
    assert table["epochs"] == f"{contents['epoch']} done"
    assert {table[name] for name in ("data set", "trained on", "started from", "git revision", "seed")} == {UNKNOWN}
    assert "model-index" not in yaml.safe_load(card.split("---\n")[1])
    convert(tmp_path / "converted", tmp_path / "back.safetensors")
    with safe_open(tmp_path / "back.safetensors", framework="np") as file:
        kept = rows(file.metadata()["model_card"])
    assert (kept["converted from"], kept["size"]) == (f"`{tmp_path / 'converted'}`", table["size"])


@pytest.mark.parametrize("name", ["a|b", "<script>", "_x_", "**c**\n# d", "`[e](f)`"])
def test_class_names_are_no_markdown(name):
    data = ModelCardData({"model": {"width": 1.0}}, class_names=[name, "turn_left"], num_classes=2)
    (line,) = re.findall("Classes, by label: 0 (.*), 1 turn_left.\n", render_model_card(data))
    assert re.sub(r"\\(.)", r"\1", line) == " ".join(name.split())
    assert not re.search(r"(?<!\\)[|<>*`\[\]#]|(?<![\\a-z])_|(?<!\\)_(?![a-z])", line)
