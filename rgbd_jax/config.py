"""The config: its defaults, its rules, and loading it from a config file."""

import importlib.resources
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from rgbd_jax.modalities import STREAMS

NVGESTURE_CENTRE = 32  # left and top of the reference's evaluation crop for NvGesture, pixels


def default_config(modality: str = "rgb") -> ConfigDict:
    """Returns the paper's network, transforms, losses and recipe; every field can be overridden by a flag."""
    config = ConfigDict()
    config.seed = 0
    config.modality = modality  # "rgb", "depth" or "fusion" of both
    config.init_from = ""  # initial weights: a workdir, a converted checkpoint, a *.pth.tar or *.safetensors
    config.continue_from = ""  # a PyTorch training to continue, with its epoch and momentum; the same kinds

    config.clip = ConfigDict()
    config.clip.frames = 64  # T: frames sampled from a clip
    config.clip.size = 224  # height and width of the network's input, pixels

    config.data = ConfigDict()
    config.data.dataset = "rgbd_folder"  # a builder of datasets/
    config.data.data_dir = "data"  # folder of the prepared data sets
    config.data.raw_dir = ""  # folder of the raw clips: the data set is built from it if it is not prepared
    config.data.skip_bad_clips = False  # while building: list bad clips and leave them out instead of stopping
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.reference_protocol = False  # leave out clips of 16 frames or fewer, as the reference does
    config.data.workers = 4  # batches prepared in parallel, one thread each; 0: no prefetching

    config.data.transforms = ConfigDict()
    config.data.transforms.resize = (320, 240)  # width, height before the crop
    config.data.transforms.crop_size = 224
    config.data.transforms.reference_nvgesture_crop = False  # evaluation crops at (32, 32), training from (10, 10) on
    config.data.transforms.rotation_probability = 0.5
    config.data.transforms.rotation_degrees = (-10, 10)
    config.data.transforms.flip_probability = 0.5
    config.data.transforms.blur = False
    config.data.transforms.reference_separate_draws = False  # fusion: each modality draws its own crop, flip, rotation

    config.data.depth = ConfigDict()  # single-channel depth only; coloured depth is used as it is
    config.data.depth.encoding = "linear"  # "linear" or "reference_wrapped"
    config.data.depth.range_mm = (500, 4500)  # "linear": nearest and farthest depth that is resolved
    config.data.depth.colour_map = "jet"  # "jet", or "grey": all three channels alike
    config.data.depth.reference_person_crop = False  # crop 320x240 around the person, as the reference does

    config.mixing = ConfigDict()  # of the clips of a training batch; one draw per batch
    config.mixing.mixup_alpha = 0.0  # of the beta distribution; 0: no mixup. 0.8 in MotionRGBD-PAMI
    config.mixing.mixup_probability = 1.0  # of a batch without ShuffleMix
    config.mixing.shufflemix_alpha = 0.0  # 0: no ShuffleMix. 0.2 or 0.3 in MotionRGBD-PAMI
    config.mixing.shufflemix_probability = 0.3

    config.model = ConfigDict()
    config.model.num_classes = config_dict.placeholder(int)  # from the data set when not given
    config.model.width = 1.0  # multiplies every channel count; 1 is the paper's 38 M parameters
    config.model.branch_frames = (16, 32, 48)  # frames of the low, medium and high temporal branch
    config.model.random_branch_frames = True  # in training each branch samples its frames; else the middle ones
    config.model.temporal_blocks = 6  # N
    config.model.attention_heads = 8
    config.model.knn_attention = 0.7  # fraction of the keys that a query keeps; 0 keeps all
    config.model.recoupling = True
    config.model.recoupling_heads = 1
    config.model.recoupling_hidden = 256
    config.model.recoupling_dropout = 0.4  # with more than one recoupling head
    config.model.frp = True
    config.model.frp_window = 10  # w: frames that a heat map pools
    config.model.dropout = 0.1  # in the transformer layers
    config.model.batch_norm_momentum = 0.01  # weight of a batch in the running statistics (PyTorch)
    config.model.sync_batch_norm = True  # statistics of the whole batch; False: of each device's clips
    config.model.dtype = "float32"  # compute type: "float32", "bfloat16" or "float64"

    config.remat = ConfigDict()  # rematerialisation: recompute in the backward pass; less memory, more time
    config.remat.stem = "none"  # layers before the inception blocks: "none", "cheap" (all but convolutions) or "all"
    config.remat.inception = "none"  # each inception block of the spatial network
    config.remat.transformer = "none"  # each transformer layer

    config.sharding = ConfigDict()  # over the devices of all processes; clips are always split over all of them
    config.sharding.parameter_shards = 1  # devices over which parameters and optimizer state are split (FSDP)

    config.fusion = ConfigDict()  # modality "fusion" only
    config.fusion.reference_layout = False  # spatial fusion mixes frames and channels; converted weights need it
    config.fusion.init_rgb_from = ""  # initial weights of the RGB network, as config.init_from
    config.fusion.init_depth_from = ""  # initial weights of the depth network
    config.fusion.cross_modal_dropout = 0.4
    config.fusion.modality_dropout = 0.5

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1
    config.loss.branch_weights = (1.0, 0.5, 0.5, 0.5)  # cross entropy of logits, small, medium, large
    config.loss.multi_branch = True  # False: cross entropy of the logits alone
    config.loss.distillation = 1.0  # weight of the recoupling distillation
    config.loss.distillation_temperature = 0.5  # the paper's tau ("temper")
    config.loss.reference_device_batch = 6  # the reference sums the distillation over a device's clips
    config.loss.sharpness = True  # divide the logits by a temperature
    config.loss.temperature = (0.04, 0.07)  # first and last, linear over temperature_epochs
    config.loss.temperature_epochs = 30

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # "sgd", "adam" or "adamw"
    config.optimizer.momentum = 0.9  # sgd only
    config.optimizer.weight_decay = 3e-4
    config.optimizer.gradient_clip = 5.0  # maximum global norm of the gradient; 0: no clipping

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # "cosine" (updated every step), "reference_cosine" or "plateau"
    config.schedule.learning_rate = 0.01
    config.schedule.minimum = 1e-5
    config.schedule.warm_up_epochs = 3
    config.schedule.reference_warm_up_to_peak = modality == "fusion"  # reference schedules: where the warm-up ends
    config.schedule.patience = 4  # "plateau": epochs without improvement before the rate is multiplied by `factor`
    config.schedule.factor = 0.1
    config.schedule.cooldown = 3

    config.train = ConfigDict()
    config.train.batch_size = 48  # over all devices; the paper's 8 GPUs times 6
    config.train.microbatches = 1  # gradient accumulation: parts of a batch that are processed in sequence
    config.train.epochs = 100
    config.train.log_every_steps = 10
    config.train.evaluate_every_epochs = 1
    config.eval = ConfigDict()
    config.eval.batch_size = 48  # over all devices; all views of these clips are in host memory
    config.eval.clips = 1  # temporal views: K takes the middle frame of each K-th part of every interval
    config.eval.crops = 1  # spatial views: 1 centre, 3 along the longer side, 5 corners and centre
    config.checkpoint = ConfigDict()
    config.checkpoint.best_metric = "top1"  # validation metric by which checkpoints are ranked
    config.checkpoint.best_is = "highest"  # or "lowest", for a loss
    config.checkpoint.keep_best = 1
    config.checkpoint.keep_latest = 2  # evaluated epochs, and as many mid-epoch checkpoints
    config.checkpoint.keep_every_epochs = 0  # also keep every so many epochs; 0: none
    config.checkpoint.every_steps = 500  # mid-epoch checkpoints; 0: only on preemption
    return config


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the checked config of a file ("configs/ntu_cs.py:depth"), or of one in the package ("ntu_cs:depth").

    What follows the colon is the argument of its `get_config`; `overrides` are flags: "--config.train.batch_size=48".

    Raises:
        ValueError: there is no such file, or a field does not exist or cannot have the value.
    """
    name, _, argument = spec.partition(":")
    packaged = Path(str(importlib.resources.files("rgbd_jax.configs")))
    path = Path(name) if name.endswith(".py") else packaged / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in packaged.glob("[!_]*.py")))
        raise ValueError(f"--config={spec}: no such file; the package has {known}")
    argv = ["", f"--config={path}{':' if argument else ''}{argument}", *overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    try:
        unparsed = values(argv)[1:]
    except (AttributeError, KeyError, flags.UnrecognizedFlagError) as error:
        detail = " ".join(str(error).strip("\"'").replace("\\n", " ").split())
        raise ValueError(f"--config={spec}: no such field: {detail}") from error
    except (TypeError, ValueError, flags.Error) as error:
        raise ValueError(f"--config={spec}: {error}") from error
    if unparsed:
        raise ValueError(f"unexpected arguments: {' '.join(unparsed)}")
    check_config(config.value)
    return config.value


# What is expected of a value, its test, and the fields that it holds for.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        "clip.frames clip.size data.transforms.crop_size model.temporal_blocks model.attention_heads "
        "model.recoupling_heads model.recoupling_hidden model.frp_window loss.reference_device_batch "
        "loss.temperature_epochs train.batch_size train.microbatches train.epochs train.log_every_steps "
        "train.evaluate_every_epochs eval.batch_size eval.clips sharding.parameter_shards checkpoint.keep_best "
        "checkpoint.keep_latest",
    ),
    (
        "more than 0",
        lambda value: value > 0,
        "model.width model.batch_norm_momentum loss.distillation_temperature schedule.learning_rate",
    ),
    (
        "at least 0 and less than 1",
        lambda value: 0 <= value < 1,
        "model.dropout model.recoupling_dropout fusion.cross_modal_dropout fusion.modality_dropout "
        "loss.label_smoothing",
    ),
    (
        "a probability, from 0 to 1",
        lambda value: 0 <= value <= 1,
        "data.transforms.rotation_probability data.transforms.flip_probability mixing.mixup_probability "
        "mixing.shufflemix_probability",
    ),
    (
        "0 (off) or more",
        lambda value: 0 <= value < math.inf,
        "data.workers mixing.mixup_alpha mixing.shufflemix_alpha checkpoint.keep_every_epochs checkpoint.every_steps",
    ),
    ("four numbers", lambda value: len(value) == 4, "loss.branch_weights"),
    ("two numbers above 0", lambda value: len(value) == 2 and min(value) > 0, "loss.temperature"),
    ("three numbers of at least 1", lambda value: len(value) == 3 and min(value) >= 1, "model.branch_frames"),
)
_REMAT = ("none", "cheap", "all")
_CHOICES: dict[str, Collection[Any]] = {
    "modality": STREAMS,
    "data.depth.encoding": ("linear", "reference_wrapped"),
    "data.depth.colour_map": ("jet", "grey"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "remat.stem": _REMAT,
    "remat.inception": _REMAT,
    "remat.transformer": _REMAT,
    "eval.crops": (1, 3, 5),
    "checkpoint.best_is": ("highest", "lowest"),
}


def check_config(config: ConfigDict) -> None:
    """Checks all fields but `checkpoint.best_metric`, which a model knows.

    Raises:
        ValueError: names every invalid field, its value and what is expected.
    """
    rules = [(field, valid(config[field]), expected) for expected, valid, fields in _RULES for field in fields.split()]
    for field, choices in _CHOICES.items():
        rules.append((field, config[field] in choices, f"one of {', '.join(map(str, choices))}"))
    rules += _relations(config)
    problems = [
        f"config.{field}={config[field]!r}: expected {expected}" for field, valid, expected in rules if not valid
    ]
    if problems:
        raise ValueError("\n  ".join(["invalid config:", *problems]))


def _relations(config: ConfigDict) -> Iterator[tuple[str, bool, str]]:
    """Yields fields whose validity depends on others, whether they are valid, and what is expected of them."""
    model, train, schedule, transforms = config.model, config.train, config.schedule, config.data.transforms
    kept = int((min(model.branch_frames, default=0) + 1) * model.knn_attention)  # the class token is a key too
    valid = model.knn_attention == 0 or (kept >= 1 and model.knn_attention <= 1)
    yield "model.knn_attention", valid, "0, or at most 1 and enough to keep one key"
    valid = train.batch_size != 1 or not (config.mixing.mixup_alpha or config.mixing.shufflemix_alpha)
    yield "train.batch_size", valid, "at least 2 with config.mixing, or its alphas 0"
    valid = 0 <= schedule.warm_up_epochs < train.epochs
    yield "schedule.warm_up_epochs", valid, "at least 0 and less than config.train.epochs"
    valid = schedule.name != "plateau" or train.evaluate_every_epochs == 1
    yield "schedule.name", valid, 'config.train.evaluate_every_epochs=1 with "plateau"'
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


def check_divisible(config: ConfigDict, devices: int, *, training: bool = True) -> None:
    """Checks that batches divide evenly among devices, and in `training` each device's clips into microbatches.

    Raises:
        ValueError: names the field, and a value that divides.
    """
    for field in ("train.batch_size", "eval.batch_size") if training else ("eval.batch_size",):
        if config[field] % devices:
            nearest = max(round(config[field] / devices), 1) * devices
            raise ValueError(
                f"config.{field}={config[field]} is not divisible by the {devices} devices; use a multiple of "
                f"{devices}, such as {nearest}"
            )
    clips, parts = config.train.batch_size // devices, config.train.microbatches
    if training and clips % parts:
        divisors = ", ".join(str(number) for number in range(1, clips + 1) if clips % number == 0)
        raise ValueError(
            f"config.train.microbatches={parts} does not divide the {clips} clips that each of the {devices} devices "
            f"has of config.train.batch_size={config.train.batch_size}; use one of {divisors}"
        )
