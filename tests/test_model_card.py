"""Names in a model card are shown as they are; the cards of runs and of files are tested where these are made."""

import re

import pytest

from rgbd_jax.checkpoint.model_card import ModelCardData, render_model_card


@pytest.mark.parametrize("name", ["a|b", "<script>", "_x_", "**c**\n# d", "`[e](f)`"])
def test_class_names_are_no_markdown(name):
    data = ModelCardData({"model": {"width": 1.0}}, class_names=[name, "turn_left"], num_classes=2)
    (line,) = re.findall("Classes, by label: 0 (.*), 1 turn_left.\n", render_model_card(data))
    assert re.sub(r"\\(.)", r"\1", line) == " ".join(name.split())
    assert not re.search(r"(?<!\\)[|<>*`\[\]#]|(?<![\\a-z])_|(?<!\\)_(?![a-z])", line)
