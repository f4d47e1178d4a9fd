"""Validation of a config: every invalid field is named before anything else happens."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from rgbd_jax.modalities import STREAMS

Rule = tuple[str, Any, bool, str]  # field, value, whether it is valid, what is expected

DTYPES = ("float32", "bfloat16", "float64")
CROPS = (1, 3, 5)  # numbers of crops that a clip can be evaluated with
DEPTH_ENCODINGS = ("linear", "reference_wrapped")
COLOUR_MAPS = ("jet", "grey")
NVGESTURE_CENTRE = 32  # left and top of the reference's evaluation crop for NvGesture, pixels
REMAT = ("none", "cheap", "all")


def check_config(config: ConfigDict) -> None:
    """Checks all fields but `checkpoint.best_metric`, which a model knows.

    Raises:
        ValueError: names every invalid field, its value and what is expected.
    """
    _check([*_rules(config), *_data_rules(config)])


def check_data_config(config: ConfigDict) -> None:
    """Checks the fields that the loader reads, as `check_config` does."""
    _check(_data_rules(config))


def check_divisible(config: ConfigDict, devices: int, *, training: bool = True) -> None:
    """Checks that batches divide evenly among devices, and each device's clips into microbatches.

    Args:
        config: the experiment's config.
        devices: number of devices.
        training: whether the training batch is checked too.

    Raises:
        ValueError: names the field, and a value that divides.
    """
    batch_sizes = {"config.train.batch_size": config.train.batch_size} if training else {}
    batch_sizes["config.eval.batch_size"] = config.eval.batch_size
    for field, batch_size in batch_sizes.items():
        if batch_size % devices:
            raise ValueError(
                f"{field}={batch_size} is not divisible by the {devices} devices; use a multiple of {devices}, such as "
                f"{max(round(batch_size / devices), 1) * devices}"
            )
    clips, parts = config.train.batch_size // devices, config.train.microbatches
    if training and clips % parts:
        divisors = ", ".join(str(number) for number in range(1, clips + 1) if clips % number == 0)
        raise ValueError(
            f"config.train.microbatches={parts} does not divide the {clips} clips that each of the {devices} devices "
            f"has of config.train.batch_size={config.train.batch_size}; use one of {divisors}"
        )


def _check(rules: Iterable[Rule]) -> None:
    problems = [
        f"config.{field}={value!r}: expected {expected}" for field, value, valid, expected in rules if not valid
    ]
    if problems:
        raise ValueError("\n  ".join(["invalid config:", *problems]))


def _each(config: ConfigDict, fields: str, valid: Callable[[Any], bool], expected: str) -> Iterator[Rule]:
    for field in fields.split():
        value = functools.reduce(lambda part, name: part[name], field.split("."), config)
        yield field, value, valid(value), expected


def _rules(config: ConfigDict) -> Iterator[Rule]:
    each = functools.partial(_each, config)
    model, train, schedule = config.model, config.train, config.schedule
    yield from each(
        "model.temporal_blocks model.attention_heads model.recoupling_heads "
        "model.recoupling_hidden model.frp_window loss.reference_device_batch loss.temperature_epochs "
        "train.batch_size train.microbatches train.epochs train.log_every_steps train.evaluate_every_epochs "
        "eval.batch_size sharding.parameter_shards checkpoint.keep_best checkpoint.keep_latest",
        lambda value: value >= 1,
        "at least 1",
    )
    yield from each(
        "model.width model.batch_norm_momentum loss.distillation_temperature schedule.learning_rate",
        lambda value: value > 0,
        "more than 0",
    )
    yield from each(
        "model.dropout model.recoupling_dropout fusion.cross_modal_dropout fusion.modality_dropout "
        "loss.label_smoothing",
        lambda value: 0 <= value < 1,
        "at least 0 and less than 1",
    )
    yield from each(
        "mixing.mixup_alpha mixing.shufflemix_alpha", lambda value: 0 <= value < math.inf, "0 (off) or more"
    )
    yield from each(
        "mixing.mixup_probability mixing.shufflemix_probability",
        lambda value: 0 <= value <= 1,
        "a probability, from 0 to 1",
    )
    yield from each("checkpoint.keep_every_epochs checkpoint.every_steps", lambda value: value >= 0, "0 (off) or more")
    yield from each(
        "remat.stem remat.inception remat.transformer", lambda value: value in REMAT, f"one of {', '.join(REMAT)}"
    )
    yield from each("model.dtype", lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}")
    yield from each("checkpoint.best_is", lambda value: value in ("highest", "lowest"), "highest or lowest")
    yield from each("loss.branch_weights", lambda value: len(value) == 4, "four numbers")
    yield from each("loss.temperature", lambda value: len(value) == 2 and min(value) > 0, "two numbers above 0")
    branches = tuple(model.branch_frames)
    valid = len(branches) == 3 and min(branches) >= 1
    yield "model.branch_frames", branches, valid, "three numbers of at least 1"
    kept = int((min(branches, default=0) + 1) * model.knn_attention)  # the class token is a key too
    valid = model.knn_attention == 0 or (kept >= 1 and model.knn_attention <= 1)
    yield "model.knn_attention", model.knn_attention, valid, "0, or at most 1 and enough to keep one key"
    valid = train.batch_size != 1 or not (config.mixing.mixup_alpha or config.mixing.shufflemix_alpha)
    yield "train.batch_size", train.batch_size, valid, "at least 2 with config.mixing, or its alphas 0"
    valid = 0 <= schedule.warm_up_epochs < train.epochs
    yield "schedule.warm_up_epochs", schedule.warm_up_epochs, valid, "at least 0 and less than config.train.epochs"
    valid = schedule.name != "plateau" or train.evaluate_every_epochs == 1
    yield "schedule.name", schedule.name, valid, 'config.train.evaluate_every_epochs=1 with "plateau"'


def _data_rules(config: ConfigDict) -> Iterator[Rule]:
    each = functools.partial(_each, config)
    transforms = config.data.transforms
    yield from each(
        "clip.frames clip.size eval.clips data.transforms.crop_size", lambda value: value >= 1, "at least 1"
    )
    for field, choices in {
        "modality": STREAMS,
        "eval.crops": CROPS,
        "data.depth.encoding": DEPTH_ENCODINGS,
        "data.depth.colour_map": COLOUR_MAPS,
    }.items():
        yield from each(field, choices.__contains__, f"one of {', '.join(map(str, choices))}")
    yield from each(
        "data.transforms.rotation_probability data.transforms.flip_probability",
        lambda value: 0 <= value <= 1,
        "a probability, from 0 to 1",
    )
    yield from each("data.workers", lambda value: value >= 0, "a number of threads, or 0 for no prefetching")
    first = NVGESTURE_CENTRE if transforms.reference_nvgesture_crop else 0
    offset = f" from {first} on, with config.data.transforms.reference_nvgesture_crop" if first else ""
    expected = f"width and height of at least config.data.transforms.crop_size={transforms.crop_size} pixels{offset}"
    valid = min(transforms.resize) >= transforms.crop_size + first
    yield "data.transforms.resize", tuple(transforms.resize), valid, expected
    lowest, highest = transforms.rotation_degrees
    valid = lowest < highest or not transforms.rotation_probability
    expected = "(lowest, highest) with lowest < highest, which is exclusive"
    yield "data.transforms.rotation_degrees", (lowest, highest), valid, expected
    near, far = config.data.depth.range_mm
    expected = "(nearest, farthest) in millimetres with 0 <= nearest < farthest <= 65535"
    yield "data.depth.range_mm", (near, far), 0 <= near < far <= 65535, expected
