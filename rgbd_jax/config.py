"""Checks of a config's values that would otherwise fail late, or worse, not at all."""

import math
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from rgbd_jax.data.transforms import CROPS
from rgbd_jax.metrics import metric_names
from rgbd_jax.modalities import STREAMS
from rgbd_jax.models.mixing import enabled
from rgbd_jax.models.remat import CHOICES as REMAT

DTYPES = ("float32", "bfloat16", "float64")


def default_config(modality: str = "rgb") -> ConfigDict:
    """Returns the paper's network, transforms, losses and recipe; every field can be overridden by a flag."""
    config = ConfigDict()
    config.seed = 0
    config.modality = modality  # "rgb", "depth" or "fusion" of both
    config.init_from = ""  # weights to start from: a workdir, a converted checkpoint, a *.pth.tar or *.safetensors
    config.continue_from = ""  # a PyTorch training to go on with: epoch and momentum too; the same kinds

    config.clip = ConfigDict()
    config.clip.frames = 64  # T: frames sampled from a clip
    config.clip.size = 224  # height and width that the network sees, pixels

    config.data = ConfigDict()
    config.data.dataset = "rgbd_folder"  # a builder of datasets/
    config.data.data_dir = "data"  # where prepared data sets lie
    config.data.raw_dir = ""  # where the raw frames lie: the data set is built from here if it is not prepared yet
    config.data.skip_bad_clips = False  # while building: list bad clips and leave them out instead of stopping
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.reference_protocol = False  # leave out clips of 16 frames or fewer, as the reference does
    config.data.workers = 4  # batches that are decoded and warped at once, a thread each; 0: none ahead

    config.data.transforms = ConfigDict()
    config.data.transforms.resize = (320, 240)  # width, height before the crop
    config.data.transforms.crop_size = 224
    config.data.transforms.reference_nvgesture_crop = False  # evaluation crops at (32, 32), training from (10, 10) on
    config.data.transforms.rotation_probability = 0.5
    config.data.transforms.rotation_degrees = (-10, 10)
    config.data.transforms.flip_probability = 0.5
    config.data.transforms.blur = False
    config.data.transforms.reference_separate_draws = False  # fusion: each modality draws its own crop, flip, rotation

    config.data.depth = ConfigDict()  # single-channel depth only; coloured depth is taken as it is
    config.data.depth.encoding = "linear"  # "linear" or "reference_wrapped"
    config.data.depth.range_mm = (500, 4500)  # "linear": nearest and farthest depth that is told apart
    config.data.depth.colour_map = "jet"  # "jet", or "grey": all three channels alike
    config.data.depth.reference_person_crop = False  # cut 320x240 around the person, as the reference does

    config.mixing = ConfigDict()  # of the clips of a training batch with each other; one draw for a batch
    config.mixing.mixup_alpha = 0.0  # both of a beta distribution's parameters; 0: no mixup. 0.8 in MotionRGBD-PAMI
    config.mixing.mixup_probability = 1.0  # of a batch without ShuffleMix
    config.mixing.shufflemix_alpha = 0.0  # 0: no ShuffleMix. 0.2 or 0.3 in MotionRGBD-PAMI
    config.mixing.shufflemix_probability = 0.3

    config.model = ConfigDict()
    config.model.num_classes = config_dict.placeholder(int)  # from the data set when not given
    config.model.width = 1.0  # multiplies every channel count; 1 is the paper's 38 M parameters
    config.model.branch_frames = (16, 32, 48)  # frames of the low, medium and high temporal branch
    config.model.random_branch_frames = True  # in training each branch draws its frames; else the middle ones
    config.model.temporal_blocks = 6  # N
    config.model.attention_heads = 8
    config.model.knn_attention = 0.7  # share of the keys a query keeps; 0 keeps all
    config.model.recoupling = True
    config.model.recoupling_heads = 1
    config.model.recoupling_hidden = 256
    config.model.recoupling_dropout = 0.4  # with more than one recoupling head
    config.model.frp = True
    config.model.frp_window = 10  # w: frames that a heat map pools
    config.model.dropout = 0.1  # in the transformer layers
    config.model.batch_norm_momentum = 0.01  # share of a batch in the running statistics; short runs need more
    config.model.sync_batch_norm = True  # statistics of the whole batch; False: of each device's share
    config.model.dtype = "float32"  # compute type: "float32", "bfloat16" or "float64"

    config.remat = ConfigDict()  # what is computed again for the gradient instead of kept: less memory, more time
    config.remat.stem = "none"  # layers before the inception blocks: "none", "cheap" (no convolutions) or "all"
    config.remat.inception = "none"  # each inception block of the spatial network
    config.remat.transformer = "none"  # each transformer layer

    config.sharding = ConfigDict()  # over the devices of all processes; clips are always split over all of them
    config.sharding.parameter_shards = 1  # devices over which parameters and optimizer state are split (FSDP)

    config.fusion = ConfigDict()  # of the stream "fusion" alone
    config.fusion.reference_layout = False  # the first exchange mixes up frames and channels; converted weights need it
    config.fusion.init_rgb_from = ""  # weights of the RGB stream to start from, as config.init_from
    config.fusion.init_depth_from = ""  # weights of the depth stream
    config.fusion.cross_modal_dropout = 0.4
    config.fusion.modality_dropout = 0.5

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1
    config.loss.branch_weights = (1.0, 0.5, 0.5, 0.5)  # cross entropy of the logits, small, medium, large
    config.loss.multi_branch = True  # False: cross entropy of the logits alone
    config.loss.distillation = 1.0  # weight of the recoupling distillation
    config.loss.distillation_temperature = 0.5  # the paper's tau ("temper")
    config.loss.reference_device_batch = 6  # distillation of a clip counts this often: the reference sums, CE averages
    config.loss.sharpness = True  # divide the logits by a temperature
    config.loss.temperature = (0.04, 0.07)  # first and last, linear over temperature_epochs
    config.loss.temperature_epochs = 30

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # "sgd", "adam" or "adamw"
    config.optimizer.momentum = 0.9  # sgd only
    config.optimizer.weight_decay = 3e-4
    config.optimizer.gradient_clip = 5.0  # largest global norm of the gradient; 0: no limit

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # "cosine" (clean, step by step), "reference_cosine" or "plateau"
    config.schedule.learning_rate = 0.01
    config.schedule.minimum = 1e-5
    config.schedule.warm_up_epochs = 3
    config.schedule.reference_warm_up_to_peak = modality == "fusion"  # reference schedules: where the warm-up ends
    config.schedule.patience = 4  # "plateau": epochs without a better accuracy before the rate falls by `factor`
    config.schedule.factor = 0.1
    config.schedule.cooldown = 3

    config.train = ConfigDict()
    config.train.batch_size = 48  # over all devices; the paper's 8 GPUs times 6
    config.train.microbatches = 1  # parts of a batch that go through the network one after the other, one step for all
    config.train.epochs = 100
    config.train.log_every_steps = 10
    config.train.evaluate_every_epochs = 1
    config.eval = ConfigDict()
    config.eval.batch_size = 48  # clips over all devices; their views lie in the host's memory together
    config.eval.clips = 1  # views in time: each interval's middle frame; K: the middle one of each of its K parts
    config.eval.crops = 1  # views in space: 1 centre, 3 along the longer side, 5 corners and centre
    config.checkpoint = ConfigDict()
    config.checkpoint.best_metric = "top1"  # figure of the validation by which checkpoints are compared
    config.checkpoint.best_is = "highest"  # or "lowest", for a loss
    config.checkpoint.keep_best = 1
    config.checkpoint.keep_latest = 2  # evaluated epochs, and as many checkpoints from amid an epoch
    config.checkpoint.keep_every_epochs = 0  # those of every so many epochs are kept too; 0: none
    config.checkpoint.every_steps = 500  # a checkpoint from amid an epoch; 0: only when asked to stop
    return config


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Stand-in for the lead's: returns the config of FILE[:MODALITY] with overrides such as --config.seed=1."""
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=parsed)
    parsed(["load_config", f"--config={spec}", *overrides])
    return parsed.config


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
        "fusion.cross_modal_dropout": config.fusion.cross_modal_dropout,
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
    known = metric_names(config.modality == "fusion")
    metric, best_is = config.checkpoint.best_metric, config.checkpoint.best_is
    yield "checkpoint.best_metric", metric, metric in known, f"expected one of {', '.join(known)}"
    yield "checkpoint.best_is", best_is, best_is in ("highest", "lowest"), "expected highest or lowest"
    for name, what in config.remat.items():
        yield f"remat.{name}", what, what in REMAT, f"expected one of {', '.join(REMAT)}"
    yield "eval.crops", config.eval.crops, config.eval.crops in CROPS, f"expected one of {', '.join(map(str, CROPS))}"
    yield "modality", config.modality, config.modality in STREAMS, f"expected one of {', '.join(STREAMS)}"
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
