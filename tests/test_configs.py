"""The config files of the published data sets: settings, commands, streams."""

import importlib
import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from rgbd_jax.config import check_config
from rgbd_jax.ingest.build import dataset_names
from rgbd_jax.optim import learning_rate

REPOSITORY = Path(__file__).resolve().parents[1]
# w, temper, knn, resize, crop, flip, rotation, range, scheduler, epochs, rate: the table of the paper's settings
NTU = (10, 0.5, 0.7, (320, 240), 224, 0.5, 0.5, (-10, 10), "reference_cosine", 100, 0.01)
SETTINGS = {
    **dict.fromkeys(("ntu_cs", "ntu_cv", "ntu120_csub", "ntu120_cset"), NTU),
    "nvgesture": (4, 0.4, 0.7, (256, 256), 224, 0.0, 0.5, (-10, 10), "reference_cosine", 100, 0.01),
    "thu_read": (10, 0.5, 0.7, (320, 240), 200, 0.5, 0.8, (-45, 45), "reference_cosine", 100, 0.01),
    "isogd": (10, 0.4, 0.7, (256, 256), 224, 0.0, 0.5, (-10, 10), "plateau", 300, 0.01),
    "jester": (10, 0.4, 0.8, (256, 256), 224, 0.0, 0.5, (-10, 10), "reference_cosine", 100, 0.01),
}
PUBLISHED = {
    "ntu_cs": ("90.3", "92.7", "94.2"),
    "ntu_cv": ("95.4", "96.2", "97.3"),
    "nvgesture": ("89.58", "90.62", "91.70"),
    "thu_read": ("81.25", "77.92", "87.04"),
    "isogd": ("60.87", "60.17", "66.79"),
}
SPLITS = {
    "ntu_cs": ("cs_train", "cs_validation"),
    "ntu_cv": ("cv_train", "cv_validation"),
    "ntu120_csub": ("csub_train", "csub_validation"),
    "ntu120_cset": ("cset_train", "cset_validation"),
    "thu_read": ("fold1_train", "fold1_validation"),
}
STREAMS = ("rgb", "depth", "fusion")
CASES = [(name, stream) for name in SETTINGS for stream in STREAMS if name != "jester" or stream == "rgb"]


def module(name):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize(("name", "stream"), CASES)
def test_settings_are_those_of_the_paper(name, stream):
    config = module(name).get_config(stream)
    check_config(config)
    transforms, schedule = config.data.transforms, config.schedule
    found = (
        *(config.model.frp_window, config.loss.distillation_temperature, config.model.knn_attention),
        *(transforms.resize, transforms.crop_size, transforms.flip_probability),
        *(transforms.rotation_probability, transforms.rotation_degrees),
        *(schedule.name, config.train.epochs, schedule.learning_rate),
    )
    assert found == SETTINGS[name]
    assert config.modality == stream
    assert config.data.dataset in dataset_names()
    assert (config.data.train_split, config.data.eval_split) == SPLITS.get(name, ("train", "validation"))
    assert transforms.reference_nvgesture_crop == (name == "nvgesture")
    # NTU's depth is cut around the person when the data set is built, and must not be cut again.
    assert config.data.depth.reference_person_crop == (name == "thu_read")
    assert learning_rate(config, config.train.epochs - 1, [0.5] * (config.train.epochs - 1)) > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_a_config_opens_with_its_commands_and_figures(name):
    text = module(name).__doc__
    commands = re.findall(r"--config (configs/\w+\.py)(?::(\w+))? ", text)
    streams = ["", "depth", "fusion"] if name != "jester" else [""]
    assert commands == [(f"configs/{name}.py", stream) for stream in streams]
    assert "been measured with this package" in " ".join(text.split())
    for figure in PUBLISHED.get(name, ()):
        assert f"{figure} %" in text
    for readme in re.findall(r"datasets/\w+/README\.md", text):
        assert (REPOSITORY / readme).is_file()


def test_jester_has_no_depth():
    with pytest.raises(ValueError, match="Jester has colour frames alone"):
        module("jester").get_config("depth")


def test_a_flag_chooses_the_fold_of_thu_read(monkeypatch):
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    arguments = ["main", f"--config={REPOSITORY}/configs/thu_read.py:depth", "--config.data.fold=3"]
    monkeypatch.setattr("sys.argv", arguments)  # where config_flags looks for the fields that are set
    values(arguments)
    assert config.value.modality == "depth"
    assert (config.value.data.train_split, config.value.data.eval_split) == ("fold3_train", "fold3_validation")
    assert config.value.to_dict()["data"]["train_split"] == "fold3_train"
