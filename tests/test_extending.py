"""The examples of docs/extending.md do what the page says."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rgbd_jax.datasets
from flax.traverse_util import flatten_dict

from rgbd_jax import cli, model
from rgbd_jax.model import Model, evaluation_schedule
from rgbd_jax.models.family import Output, ScheduleValues
from tests.conftest import ROOT
from tests.made_raw_data import COLOUR, GREY, frames_of, lines_of
from tests.test_docs import blocks, problem
from tests.tiny import tiny_config

NETWORK, DATA_SET, LOSS = blocks((ROOT / "docs/extending.md").read_text(), "python")
CLASSES, CLIPS = 3, 4
LABELS = np.arange(CLIPS) % CLASSES


def defined(block, name):
    namespace = {"__name__": "example"}
    exec(block, namespace)
    return namespace[name]


def test_network_learns_and_names_what_the_tools_need(monkeypatch):
    family, config = defined(NETWORK, "COMPACT"), tiny_config("data")
    monkeypatch.setattr(model, "family_of", lambda *chosen_by: family)
    network = Model(config, CLASSES)
    params, statistics = jax.tree.map(jnp.asarray, network.init(0))
    shape = (CLIPS, config.clip.frames, config.clip.size, config.clip.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    names, schedule = sorted({family.explained(config, "rgb"), *family.features("rgb")}), evaluation_schedule(config, 0)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient_of(params):
        inputs = network.inputs({"frames": {"rgb": frames}})
        output, _ = network.apply(params, statistics, inputs, schedule, train=True, intermediates=names)
        return network.losses(output, LABELS, schedule)["loss"].mean(), output

    (before, output), gradient = gradient_of(params)
    assert output.logits.shape == (CLIPS, CLASSES)
    assert sorted(output.intermediates) == names
    for name, value in flatten_dict(gradient["spatial"], sep=".").items():
        assert np.abs(value).max() > 0, name
    (after, _), _ = gradient_of(jax.tree.map(lambda x, g: x - 0.01 * g, params, gradient))
    assert after < before


def test_loss_is_added_and_logged():
    family, config = defined(LOSS, "FOCAL"), tiny_config("data")
    rng = np.random.default_rng(0)
    heads = {name: rng.normal(size=(CLIPS, CLASSES)).astype(np.float32) for name in family.heads}
    output = Output(heads=jax.tree.map(jnp.asarray, heads), features={}, intermediates={})
    losses, without = (x.losses(output, LABELS, config, ScheduleValues(0, 1, 1)) for x in (family, model.UNIMODAL))
    assert set(losses) == set(family.loss_names)
    assert "focal" in family.metric_names
    probabilities = np.exp(heads["logits"]) / np.exp(heads["logits"]).sum(-1, keepdims=True)
    of_class = probabilities[np.arange(CLIPS), LABELS]
    np.testing.assert_allclose(losses["focal"], -((1 - of_class) ** 2) * np.log(of_class), rtol=1e-4)
    np.testing.assert_allclose(losses["loss"], without["loss"] + losses["focal"], rtol=1e-6)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the builder of the page, found beside the package's, and raw clips of noise."""
    package = tmp_path / "datasets" / "gestures"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "builder.py").write_text(DATA_SET)
    monkeypatch.setattr(rgbd_jax.datasets, "__path__", [*rgbd_jax.datasets.__path__, str(package.parent)])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    raw = tmp_path / "GESTURES"
    for split, count in {"train": 16, "validation": 4}.items():
        for number in range(count):
            frames_of(raw / f"color/{split}_{number}", COLOUR)
            frames_of(raw / f"depth/{split}_{number}", GREY)
        lines_of(
            raw / f"{split}.csv", (f"{split}_{number},{'wave' if number % 2 else 'grab'}" for number in range(count))
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_commands():
    page = (ROOT / "docs/extending.md").read_text()
    return [line.split()[1:] for block in blocks(page, "") for line in block.splitlines()]


def test_data_set_is_checked_built_and_read_by_the_commands_of_the_page(checkout, capsys):
    check, build, preview, train = page_commands()
    for command in (check, build, preview):
        assert command[:2] == ["-m", "rgbd_jax"]
        cli.main(command[2:])
    assert "0 problems" in capsys.readouterr().out
    assert cv2.imread("sheet.png") is not None
    assert train[1] == "rgbd_jax.main"
    assert not problem(train[1:])
    (checkout / "GESTURES/train.csv").write_text("train_0,wave\ntrain_1,clap\n")
    with pytest.raises(SystemExit):
        cli.main(check[2:])
    assert "GESTURES/train.csv:2: expected one of wave, grab, found 'clap'" in capsys.readouterr().out
