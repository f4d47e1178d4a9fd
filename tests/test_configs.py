"""The config files of the published data sets: settings, commands, modalities."""

import importlib
import re
from pathlib import Path

import pytest

from rgbd_jax.config import check_config, load_config
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
MODALITIES = ("rgb", "depth", "fusion")
CASES = [(name, modality) for name in SETTINGS for modality in MODALITIES if name != "jester" or modality == "rgb"]


def module(name):
    return importlib.import_module(f"rgbd_jax.configs.{name}")


@pytest.mark.parametrize(("name", "modality"), CASES)
def test_settings_are_those_of_the_paper(name, modality):
    config = module(name).get_config(modality)
    check_config(config)
    transforms, schedule = config.data.transforms, config.schedule
    found = (
        *(config.model.frp_window, config.loss.distillation_temperature, config.model.knn_attention),
        *(transforms.resize, transforms.crop_size, transforms.flip_probability),
        *(transforms.rotation_probability, transforms.rotation_degrees),
        *(schedule.name, config.train.epochs, schedule.learning_rate),
    )
    assert found == SETTINGS[name]
    assert config.modality == modality
    assert config.data.dataset in dataset_names()
    assert (config.data.train_split, config.data.eval_split) == SPLITS.get(name, ("train", "validation"))
    assert transforms.reference_nvgesture_crop == (name == "nvgesture")
    # NTU's depth is cut around the person when the data set is built, and must not be cut again.
    assert config.data.depth.reference_person_crop == (name == "thu_read")
    assert learning_rate(config, config.train.epochs - 1, [0.5] * (config.train.epochs - 1)) > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_a_config_opens_with_its_commands_and_published_accuracies(name):
    text = module(name).__doc__
    commands = re.findall(r"--config (configs/\w+\.py)(?::(\w+))? ", text)
    modalities = ["", "depth", "fusion"] if name != "jester" else [""]
    assert commands == [(f"configs/{name}.py", modality) for modality in modalities]
    assert "been measured with this package" in " ".join(text.split())
    for number in PUBLISHED.get(name, ()):
        assert f"{number} %" in text
    for readme in re.findall(r"datasets/\w+/README\.md", text):
        assert (REPOSITORY / readme).is_file()


def test_jester_has_no_depth():
    with pytest.raises(ValueError, match="Jester has colour frames only"):
        module("jester").get_config("depth")


def test_an_override_chooses_the_fold_of_thu_read():
    config = load_config("thu_read:depth", ["--config.data.fold=3"])
    assert config.modality == "depth"
    assert (config.data.train_split, config.data.eval_split) == ("fold3_train", "fold3_validation")
    assert config.to_dict()["data"]["train_split"] == "fold3_train"


def test_wrong_config_files_and_fields_are_named(tmp_path):
    assert load_config(str(REPOSITORY / "configs/demo.py")) == load_config("demo")
    for spec, overrides, message in (
        ("nothing", (), "no such file; the package has demo, folder, .*ntu_cs"),
        (str(tmp_path / "nothing.py"), (), "no such file"),
        ("demo", ("--config.model.widht=2",), "no such field: .*widht.* Did you mean"),
        ("demo", ("--config.train.batch_size=many",), "many"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config(spec, overrides)
