"""Names in a model card are shown as they are; the cards of runs and of files are tested where these are made."""

import re

import pytest
import yaml

from rgbd_jax.checkpoint.model_card import ModelCardData, render_model_card


@pytest.mark.parametrize("name", ["a|b", "<script>", "_x_", "**c**\n# d", "`[e](f)`"])
def test_class_names_are_no_markdown(name):
    data = ModelCardData({"model": {"width": 1.0}}, class_names=[name, "turn_left"], num_classes=2)
    (line,) = re.findall("Classes, by label: 0 (.*), 1 turn_left.\n", render_model_card(data))
    assert re.sub(r"\\(.)", r"\1", line) == " ".join(name.split())
    assert not re.search(r"(?<!\\)[|<>*`\[\]#]|(?<![\\a-z])_|(?<!\\)_(?![a-z])", line)


def test_nothing_in_a_card_is_markup_or_a_control():
    """Text of a file or a data set, wherever the card shows it."""
    odd = "<b>x</b> [y](z) $m$ `c` | d\n# e \x1b[31m \u202e \ud800"
    config = {"model": {"width": 1.0, "dtype": odd}, "data": {"dataset": odd}, "modality": "rgb"}
    provenance = {
        "changes": [odd],
        "git": odd,
        "command": ["rgbd", f"{odd}\n```\n"],
        "started_from": {"init_from": odd},
    }
    card = render_model_card(
        ModelCardData(config, (), provenance, [odd], 1, converted_from=odd, optimizer={odd: odd, "lr": 0.1})
    )
    assert card.encode("utf-8").isascii()
    assert "\x1b" not in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "rgbd_jax"
    outside = re.sub(r"```sh\n.*\n```|(?<!\\)`[^`\n]*`", "", card).split("---\n", 2)[2]
    assert not re.findall(r"(?<!\\)<(?!!--)|(?<!\\)\[|(?<!\\)\$|^# e", outside, re.MULTILINE)
    assert card.count("x\\</b\\>") >= 6
