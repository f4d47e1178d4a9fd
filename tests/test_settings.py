"""Values of config fields that cannot be used are refused by name, all at once."""

import pytest

from configs import common
from rgbd_jax.settings import check_config
from rgbd_jax.steps import Stream


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip.frames", 0),
        ("model.width", 0.0),
        ("model.dtype", "float16"),
        ("model.branch_frames", (16, 32)),
        ("model.knn_attention", 1.5),
        ("model.knn_attention", 0.01),
        ("model.dropout", 1.0),
        ("model.frp_window", 0),
        ("loss.temperature", (0.0, 0.07)),
        ("schedule.warm_up_epochs", 100),
        ("train.epochs", 0),
        ("eval.batch_size", -1),
    ],
)
def test_unusable_value_is_named(field, value):
    config = common.get_config()
    check_config(config)
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=rf"config\.{field}="):
        Stream(config, 12)


def test_all_problems_are_told_together():
    config = common.get_config()
    config.model.width = -1.0
    config.schedule.name = "plateau"
    config.train.evaluate_every_epochs = 2
    with pytest.raises(ValueError, match=r"(?s)config\.model\.width=-1\.0.*config\.schedule\.name='plateau'"):
        check_config(config)
