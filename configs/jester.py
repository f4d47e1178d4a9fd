r"""20BN-Jester V1, 27 classes, RGB alone: what the paper's networks are pre-trained on (see datasets/jester/README.md).

    python -m rgbd_jax data build jester --raw_dir JESTER --data_dir data
    python -m rgbd_jax.main --config configs/jester.py --workdir runs/jester

Other data sets start from it with `--config.init_from=runs/jester`, RGB and depth alike. The paper's recipe, including
quirks of its schedule: 8 devices times 6 clips, 100 epochs; 118562 clips to train on and 14787 to evaluate on.

The paper reports no accuracy for it. Neither the accuracy nor the time has been measured with this package; one epoch
is 2470 steps of 48 clips of 420 GFLOP each.
"""

from ml_collections import ConfigDict

from rgbd_jax.config import default_config


def get_config(modality: str = "rgb") -> ConfigDict:
    """Returns the config of Jester; its only modality is "rgb".

    Raises:
        ValueError: another modality is given.
    """
    if modality != "rgb":
        raise ValueError(
            f"Jester has colour frames only: expected configs/jester.py or configs/jester.py:rgb, not :{modality}"
        )
    config = default_config(modality)
    config.data.dataset = "jester"
    config.data.transforms.resize = (256, 256)
    config.data.transforms.flip_probability = 0.0
    config.model.knn_attention = 0.8
    config.loss.distillation_temperature = 0.4
    config.schedule.name = "reference_cosine"
    return config
