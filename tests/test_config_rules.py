"""Invalid values of config fields are refused by name, all at once."""

import re

import pytest

from rgbd_jax.config import check_config, check_divisible, default_config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip.frames", 0),
        ("model.width", 0.0),
        ("model.dtype", "float16"),
        ("model.branch_frames", (16, 32)),
        ("model.knn_attention", 0.01),
        ("model.dropout", 1.0),
        ("loss.temperature", (0.0, 0.07)),
        ("schedule.warm_up_epochs", 100),
    ],
)
def test_an_invalid_value_is_named_with_all_others(field, value):
    config = default_config()
    check_config(config)
    config.update_from_flattened_dict({field: value, "train.evaluate_every_epochs": 0})
    with pytest.raises(ValueError, match=rf"(?s)(?=.*config\.{field}=).*config\.train\.evaluate_every_epochs=0"):
        check_config(config)


def test_batches_must_be_divisible_by_the_devices():
    config = default_config()
    config.train.batch_size, config.eval.batch_size = 20, 48
    check_divisible(config, 8, training=False)
    for training, field in ((True, "config.train.batch_size=20"), (False, "config.eval.batch_size=20")):
        with pytest.raises(ValueError, match=f"{re.escape(field)} is not divisible by the 8 devices"):
            check_divisible(config, 8, training=training)
        config.eval.batch_size = 20
