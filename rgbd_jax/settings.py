"""Checks of a config's values that would otherwise fail late, or worse, not at all."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from rgbd_jax.data.transforms import CROPS
from rgbd_jax.metrics import metric_names
from rgbd_jax.mixing import enabled
from rgbd_jax.modalities import STREAMS
from rgbd_jax.models.remat import CHOICES as REMAT

DTYPES = ("float32", "bfloat16", "float64")


def check_config(config: ConfigDict) -> None:
    """Checks the fields of model, loss and loop; those of the data are checked where the data are read.

    Raises:
        ValueError: names every field whose value cannot be used, what it is and what it may be.
    """
    problems = [
        f"config.{field}={value!r}: {expected}" for field, value, allowed, expected in _rules(config) if not allowed
    ]
    if problems:
        raise ValueError("\n  ".join(["the config cannot be used:", *problems]))


def check_split_over(config: ConfigDict, devices: int, *, training: bool = True) -> None:
    """Checks that batches divide evenly among devices, and each device's share into its parts.

    Args:
        config: the experiment's config.
        devices: their number.
        training: whether there will be any; an evaluation alone has no batches of a training.

    Raises:
        ValueError: they do not; names the fields, and what would do.
    """
    batch_sizes = {"config.train.batch_size": config.train.batch_size} if training else {}
    batch_sizes["config.eval.batch_size"] = config.eval.batch_size
    for field, batch_size in batch_sizes.items():
        if batch_size % devices:
            raise ValueError(
                f"{field}={batch_size} does not divide by the {devices} devices; use a multiple of {devices}, such as "
                f"{max(round(batch_size / devices), 1) * devices}"
            )
    share, parts = config.train.batch_size // devices, config.train.microbatches
    if training and share % parts:
        fitting = ", ".join(str(number) for number in range(1, share + 1) if share % number == 0)
        raise ValueError(
            f"config.train.microbatches={parts} does not divide the {share} clips that each of the {devices} devices "
            f"has of config.train.batch_size={config.train.batch_size}; use one of {fitting}"
        )


def _rules(config: ConfigDict) -> Iterator[tuple[str, object, bool, str]]:
    model, loss, train, schedule = config.model, config.loss, config.train, config.schedule
    for field, value in {
        "clip.frames": config.clip.frames,
        "clip.size": config.clip.size,
        "model.temporal_blocks": model.temporal_blocks,
        "model.attention_heads": model.attention_heads,
        "model.recoupling_heads": model.recoupling_heads,
        "model.recoupling_hidden": model.recoupling_hidden,
        "model.frp_window": model.frp_window,
        "loss.reference_device_batch": loss.reference_device_batch,
        "loss.temperature_epochs": loss.temperature_epochs,
        "train.batch_size": train.batch_size,
        "train.microbatches": train.microbatches,
        "sharding.parameter_shards": config.sharding.parameter_shards,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "checkpoint.keep_latest": config.checkpoint.keep_latest,
        "train.epochs": train.epochs,
        "train.log_every_steps": train.log_every_steps,
        "train.evaluate_every_epochs": train.evaluate_every_epochs,
        "eval.batch_size": config.eval.batch_size,
        "eval.clips": config.eval.clips,
    }.items():
        yield field, value, value >= 1, "expected at least 1"
    for field, value in {
        "model.width": model.width,
        "model.batch_norm_momentum": model.batch_norm_momentum,
        "loss.distillation_temperature": loss.distillation_temperature,
        "schedule.learning_rate": schedule.learning_rate,
    }.items():
        yield field, value, value > 0, "expected more than 0"
    for field, value in {
        "model.dropout": model.dropout,
        "model.recoupling_dropout": model.recoupling_dropout,
        "fusion.exchange_dropout": config.fusion.exchange_dropout,
        "fusion.modality_dropout": config.fusion.modality_dropout,
        "loss.label_smoothing": loss.label_smoothing,
    }.items():
        yield field, value, 0 <= value < 1, "expected at least 0 and less than 1"
    mixing = config.mixing
    for field, value in {
        "mixing.mixup_alpha": mixing.mixup_alpha,
        "mixing.shufflemix_alpha": mixing.shufflemix_alpha,
    }.items():
        yield field, value, 0 <= value < math.inf, "expected 0 (off) or more"
    for field, value in {
        "mixing.mixup_probability": mixing.mixup_probability,
        "mixing.shufflemix_probability": mixing.shufflemix_probability,
    }.items():
        yield field, value, 0 <= value <= 1, "expected a probability, from 0 to 1"
    partner = train.batch_size != 1 or not enabled(mixing)
    yield "train.batch_size", train.batch_size, partner, "expected at least 2 with config.mixing, or its alphas 0"
    for field, value in {
        "checkpoint.keep_every_epochs": config.checkpoint.keep_every_epochs,
        "checkpoint.every_steps": config.checkpoint.every_steps,
    }.items():
        yield field, value, value >= 0, "expected 0 (off) or more"
    known = metric_names(config.stream == "fusion")
    metric, best_is = config.checkpoint.best_metric, config.checkpoint.best_is
    yield "checkpoint.best_metric", metric, metric in known, f"expected one of {', '.join(known)}"
    yield "checkpoint.best_is", best_is, best_is in ("highest", "lowest"), "expected highest or lowest"
    for name, what in config.remat.items():
        yield f"remat.{name}", what, what in REMAT, f"expected one of {', '.join(REMAT)}"
    yield "eval.crops", config.eval.crops, config.eval.crops in CROPS, f"expected one of {', '.join(map(str, CROPS))}"
    yield "stream", config.stream, config.stream in STREAMS, f"expected one of {', '.join(STREAMS)}"
    yield "model.dtype", model.dtype, model.dtype in DTYPES, f"expected one of {', '.join(DTYPES)}"
    branches = tuple(model.branch_frames)
    yield "model.branch_frames", branches, len(branches) == 3 and min(branches) >= 1, "expected three numbers from 1 on"
    # The class token is a key too.
    kept = int((min(branches) + 1) * model.knn_attention)
    usable = model.knn_attention == 0 or (kept >= 1 and model.knn_attention <= 1)
    yield "model.knn_attention", model.knn_attention, usable, "expected 0, or at most 1 and so much that a key is kept"
    yield "loss.branch_weights", loss.branch_weights, len(loss.branch_weights) == 4, "expected four numbers"
    yield "loss.temperature", loss.temperature, min(loss.temperature) > 0, "expected two numbers above 0"
    warm_up = 0 <= schedule.warm_up_epochs < train.epochs
    yield "schedule.warm_up_epochs", schedule.warm_up_epochs, warm_up, "expected less than config.train.epochs"
    every_epoch = schedule.name != "plateau" or train.evaluate_every_epochs == 1
    yield "schedule.name", schedule.name, every_epoch, 'expected config.train.evaluate_every_epochs=1 with "plateau"'
