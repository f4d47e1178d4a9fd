"""The rules that every config meets."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rgbd_jax.modalities import STREAMS

UMDR_RECOUPLINGS = 3  # recoupling modules, each the student of one of the last transformer layers
NVGESTURE_CENTRE = 32  # left and top of the reference's evaluation crop for NvGesture, pixels
WHOLE_TENSOR_OPTIMIZERS = ("lamb",)  # those that read the norm of a parameter, which FSDP splits
OPTIMIZERS = ("sgd", "adam", "adamw", "nadamw", "radam", "adan", "lion", *WHOLE_TENSOR_OPTIMIZERS)
WRITERS = ("tensorboard", "wandb")

# What is expected of a value, its test, and the fields that it holds for.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        "loss.reference_device_batch loss.temperature_epochs schedule.decay_epochs train.batch_size train.microbatches "
        "train.epochs train.log_every_steps train.evaluate_every_epochs eval.batch_size eval.clips "
        "sharding.parameter_shards checkpoint.keep_best checkpoint.keep_latest",
    ),
    ("at least 0 and less than 2**31", lambda value: 0 <= value < 2**31, "seed"),
    (
        "at least 1 and at most 4096",
        lambda value: 1 <= value <= 4096,
        "clip.frames clip.size data.transforms.crop_size model.temporal_blocks model.attention_heads "
        "fusion.spatial_blocks fusion.temporal_blocks model.recoupling_heads model.recoupling_hidden model.frp_window",
    ),
    ("more than 0 and at most 64", lambda value: 0 < value <= 64, "model.width"),
    (
        "more than 0",
        lambda value: value > 0,
        "model.batch_norm_momentum loss.distillation_temperature schedule.learning_rate",
    ),
    (
        "at least 0 and less than 1",
        lambda value: 0 <= value < 1,
        "model.dropout model.recoupling_dropout fusion.cross_modal_dropout fusion.modality_dropout "
        "loss.label_smoothing train.ema_decay",
    ),
    (
        "a probability, from 0 to 1",
        lambda value: 0 <= value <= 1,
        "data.transforms.rotation_probability data.transforms.flip_probability mixing.mixup_probability "
        "mixing.shufflemix_probability mixing.same_class_probability",
    ),
    (
        "0 (off) or more",
        lambda value: 0 <= value < math.inf,
        "data.workers model.dynamic_images loss.teacher mixing.mixup_alpha mixing.shufflemix_alpha "
        "checkpoint.keep_every_epochs checkpoint.every_steps",
    ),
    ("four numbers", lambda value: len(value) == 4, "loss.branch_weights"),
    (
        "two numbers above 0",
        lambda value: len(value) == 2 and min(value) > 0,
        "loss.temperature fusion.frozen_temperatures",
    ),
    (
        "three numbers from 1 to 4096",
        lambda value: len(value) == 3 and 1 <= min(value) <= max(value) <= 4096,
        "model.branch_frames",
    ),
)
_REMAT = ("none", "cheap", "all")
_CHOICES: dict[str, Collection[Any]] = {
    "network": ("decoupled", "umdr"),
    "modality": STREAMS,
    "mixing.shufflemix_mode": ("random", "strided", "trailing", "mixup"),
    "data.depth.encoding": ("linear", "reference_wrapped"),
    "data.depth.colour_map": ("jet", "grey"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.matmul_precision": ("default", "high", "highest"),
    "model.operations": ("auto", "cpu", "gpu", "tpu"),
    "remat.stem": _REMAT,
    "remat.inception": _REMAT,
    "remat.transformer": _REMAT,
    "eval.crops": (1, 3, 5),
    "checkpoint.best_is": ("highest", "lowest"),
    "optimizer.name": OPTIMIZERS,
}


def problems(config: ConfigDict, default: ConfigDict) -> list[str]:
    """Returns what is wrong with the fields of a config: every invalid one, its value and what is expected.

    A field has the type of the default config's.
    """
    if wrong := list(_wrong_types(config, default)):
        return wrong
    rules = [(field, valid(config[field]), expected) for expected, valid, fields in _RULES for field in fields.split()]
    for field, choices in _CHOICES.items():
        rules.append((field, config[field] in choices, f"one of {', '.join(map(str, choices))}"))
    rules += _relations(config)
    return [f"config.{field}={config[field]!r}: expected {expected}" for field, valid, expected in rules if not valid]


def _wrong_types(config: ConfigDict, default: ConfigDict) -> Iterator[str]:
    """Yields the fields of another type than the default, which a ConfigDict does not notice in None and tuples.

    Neither does it notice NaN and infinity, which `config.json` cannot hold.
    """
    found = flatten_dict(config.to_dict(), sep=".")
    for name, value in flatten_dict(default.to_dict(), sep=".").items():
        if name not in found:
            yield f"config.{name}: is missing; expected a value such as {value!r}"
        elif not _is_like(found[name], value):
            yield f"config.{name}={found[name]!r}: expected a value such as {value!r}"


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if default is None:
        return value is None or isinstance(value, int | float)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(each, default[0]) for each in value)
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return isinstance(value, int | float if number else type(default))


def _relations(config: ConfigDict) -> Iterator[tuple[str, bool, str]]:
    """Yields fields whose validity depends on others, whether they are valid, and what is expected of them."""
    model, train, schedule, transforms = config.model, config.train, config.schedule, config.data.transforms
    if config.network == "umdr":
        valid = model.temporal_blocks >= UMDR_RECOUPLINGS
        yield "model.temporal_blocks", valid, f"at least {UMDR_RECOUPLINGS} with config.network='umdr'"
        yield "model.frp", not model.frp, "False with config.network='umdr'"
        yield "model.recoupling", model.recoupling, "True with config.network='umdr'"
    valid = model.dynamic_images != 1 and (not model.dynamic_images or config.clip.frames > 1)
    yield "model.dynamic_images", valid, "0, or at least 2 with more than one frame"
    valid = not config.loss.teacher or (config.modality != "fusion" and train.ema_decay > 0)
    yield "loss.teacher", valid, "0, or one modality with config.train.ema_decay"
    kept = int((min(model.branch_frames, default=0) + 1) * model.knn_attention)  # the class token is a key too
    valid = model.knn_attention == 0 or (kept >= 1 and model.knn_attention <= 1)
    yield "model.knn_attention", valid, "0, or at most 1 and enough to keep one key"
    mixing = config.mixing
    valid = train.batch_size != 1 or not max(mixing.mixup_alpha, mixing.shufflemix_alpha, mixing.same_class_probability)
    yield "train.batch_size", valid, "at least 2 with config.mixing, or its alphas and same_class_probability 0"
    valid = 0 <= schedule.warm_up_epochs < train.epochs
    yield "schedule.warm_up_epochs", valid, "at least 0 and less than config.train.epochs"
    valid = schedule.name != "plateau" or train.evaluate_every_epochs == 1
    yield "schedule.name", valid, 'config.train.evaluate_every_epochs=1 with "plateau"'
    valid = config.sharding.parameter_shards == 1 or config.optimizer.name not in WHOLE_TENSOR_OPTIMIZERS
    yield "sharding.parameter_shards", valid, f"1 with config.optimizer.name={config.optimizer.name!r}"
    yield "train.writers", set(train.writers) <= set(WRITERS), f"a tuple of {', '.join(WRITERS)}"
    first = NVGESTURE_CENTRE if transforms.reference_nvgesture_crop else 0
    offset = f" from {first} on, with config.data.transforms.reference_nvgesture_crop" if first else ""
    expected = f"width and height of at least config.data.transforms.crop_size={transforms.crop_size} pixels{offset}"
    yield "data.transforms.resize", min(transforms.resize) >= transforms.crop_size + first, expected
    lowest, highest = transforms.rotation_degrees
    valid = lowest < highest or not transforms.rotation_probability
    yield "data.transforms.rotation_degrees", valid, "(lowest, highest) with lowest < highest, which is exclusive"
    near, far = config.data.depth.range_mm
    expected = "(nearest, farthest) in millimetres with 0 <= nearest < farthest <= 65535"
    yield "data.depth.range_mm", 0 <= near < far <= 65535, expected
