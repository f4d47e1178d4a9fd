"""The config: its defaults, and loading it from a config file; its rules are in `config_rules`."""

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_dict, config_flags

from rgbd_jax import config_rules
from rgbd_jax.modalities import STREAMS


def default_config(modality: str = "rgb") -> ConfigDict:
    """Returns the paper's network, transforms, losses and recipe; every field can be overridden by a flag."""
    config = ConfigDict()
    config.seed = 0  # of initial weights, the order of clips, augmentation and dropout
    config.network = "decoupled"  # or "umdr", its successor (see `umdr_config`)
    config.modality = modality  # "rgb", "depth" or "fusion" of both
    config.init_from = ""  # initial weights: a workdir, a converted checkpoint, a *.pth.tar, *.safetensors or a name
    config.continue_from = ""  # a PyTorch training to continue, with its epoch and momentum; the same kinds

    config.clip = ConfigDict()  # frames that the network sees
    config.clip.frames = 64  # T: frames sampled from a clip
    config.clip.size = 224  # height and width of the network's input, pixels

    config.data = ConfigDict()  # clips, and how they are prepared
    config.data.dataset = "rgbd_folder"  # a builder of datasets/
    config.data.data_dir = "data"  # folder of the prepared data sets, on disk or in object storage (gs://...)
    config.data.raw_dir = ""  # folder of the raw clips: the data set is built from it if it is not prepared
    config.data.skip_bad_clips = False  # while building: list bad clips and leave them out instead of stopping
    config.data.train_split = "train"  # split, part of one ("train[:80%]") or sum of several that is trained on
    config.data.eval_split = "validation"  # the same for validation and evaluation
    config.data.reference_protocol = False  # leave out clips of 16 frames or fewer, as the reference does
    config.data.workers = 4  # batches prepared in parallel, one thread each; 0: no prefetching

    config.data.transforms = ConfigDict()  # resizing, cropping and augmentation
    config.data.transforms.resize = (320, 240)  # width, height before the crop
    config.data.transforms.crop_size = 224  # side of the square crop, which is resized to clip.size, pixels
    config.data.transforms.reference_nvgesture_crop = False  # evaluation crops at (32, 32), training from (10, 10) on
    config.data.transforms.rotation_probability = 0.5  # of rotating a training clip
    config.data.transforms.rotation_degrees = (-10, 10)  # smallest and largest angle
    config.data.transforms.flip_probability = 0.5  # of mirroring a training clip, left and right
    config.data.transforms.blur = False  # Gaussian blur of some training clips
    config.data.transforms.reference_separate_draws = False  # fusion: each modality draws its own crop, flip, rotation

    config.data.depth = ConfigDict()  # single-channel depth only; coloured depth is used as it is
    config.data.depth.encoding = "linear"  # "linear" or "reference_wrapped"
    config.data.depth.range_mm = (500, 4500)  # "linear": nearest and farthest depth that is resolved
    config.data.depth.colour_map = "jet"  # "jet", or "grey": all three channels alike
    config.data.depth.reference_person_crop = False  # crop 320x240 around the person, as the reference does

    config.mixing = ConfigDict()  # of the clips of a training batch; one draw per batch
    config.mixing.mixup_alpha = 0.0  # of the beta distribution; 0: no mixup. 0.8 in MotionRGBD-PAMI
    config.mixing.mixup_probability = 1.0  # of a batch without ShuffleMix
    config.mixing.mixup_per_frame = False  # MotionRGBD-PAMI's tempMix: each frame has its own weight
    config.mixing.mixup_dynamic = False  # uniform weights, up to a limit that grows to 0.5 in the last epoch
    config.mixing.shufflemix_alpha = 0.0  # 0: no ShuffleMix. 0.2 or 0.3 in MotionRGBD-PAMI
    config.mixing.shufflemix_probability = 0.3  # of a batch
    config.mixing.shufflemix_mode = "random"  # "random", "strided", "trailing", "mixup": its sm, sm_v1, sm_v2, mu_sm
    config.mixing.same_class_probability = 0.0  # of a batch: frames from clips of the same class, its MixIntra
    config.mixing.reference_label = False  # ShuffleMix: label by the weight before rounding; same class: 0.9 its own

    config.model = ConfigDict()  # the network of one modality
    config.model.num_classes = config_dict.placeholder(int)  # from the data set when not given
    config.model.width = 1.0  # multiplies every channel count; 1 is the paper's 38 M parameters
    config.model.branch_frames = (16, 32, 48)  # frames of the low, medium and high temporal branch
    config.model.random_branch_frames = True  # in training each branch samples its frames; else the middle ones
    config.model.temporal_blocks = 6  # N
    config.model.attention_heads = 8  # of each transformer layer
    config.model.knn_attention = 0.7  # fraction of the keys that a query keeps; 0 keeps all
    config.model.recoupling = True  # weight frames and channels by the recoupling module
    config.model.recoupling_heads = 1  # number of its parallel weightings
    config.model.recoupling_hidden = 256  # width of its hidden layer
    config.model.recoupling_dropout = 0.4  # with more than one recoupling head
    config.model.frp = True  # guide the spatial network by heat maps of motion (frame rank pooling)
    config.model.frp_window = 10  # w: frames that a heat map pools
    config.model.dynamic_images = 0  # frames that each image of motion pools, which replaces a frame; 0: the frames
    config.model.dropout = 0.1  # in the transformer layers
    config.model.batch_norm_momentum = 0.01  # weight of a batch in the running statistics (PyTorch)
    config.model.sync_batch_norm = True  # statistics of the whole batch; False: of each device's clips
    config.model.dtype = "float32"  # compute type: "float32", "bfloat16" or "float64"
    config.model.matmul_precision = "default"  # "default", "high" or "highest": of float32 on accelerators
    config.model.operations = "auto"  # formulation for "cpu", "gpu" or "tpu"; "auto": for this machine's devices

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
    config.fusion.cross_modal_dropout = 0.4  # dropout of the features that the modalities exchange
    config.fusion.modality_dropout = 0.5  # dropout before the classifier of the modality
    config.fusion.spatial_blocks = 2  # UMDR: blocks that fuse the features of the frames
    config.fusion.temporal_blocks = 4  # UMDR: blocks that fuse the frames' and the clip's
    config.fusion.frozen_temperatures = (0.07, 0.07)  # UMDR: of the RGB and the depth network, at their last epochs

    config.loss = ConfigDict()  # terms and temperatures
    config.loss.label_smoothing = 0.1  # probability that is spread over all classes
    config.loss.branch_weights = (1.0, 0.5, 0.5, 0.5)  # cross entropy of logits, small, medium, large
    config.loss.multi_branch = True  # False: cross entropy of the logits alone
    config.loss.distillation = 1.0  # weight of the recoupling distillation
    config.loss.distillation_temperature = 0.5  # the paper's tau ("temper")
    config.loss.teacher = 0.0  # weight of the cross entropy to what the averaged weights say of the other modality
    config.loss.reference_device_batch = 6  # the reference sums the distillation over a device's clips
    config.loss.sharpness = True  # divide the logits by a temperature
    config.loss.temperature = (0.04, 0.07)  # first and last, linear over temperature_epochs
    config.loss.temperature_epochs = 30  # epochs until the last temperature

    config.optimizer = ConfigDict()  # how gradients change the weights
    config.optimizer.name = "sgd"  # of optax: one of `config_rules.OPTIMIZERS`
    config.optimizer.momentum = 0.9  # sgd only
    config.optimizer.decay_vectors = True  # False: no weight decay on biases and scales
    config.optimizer.weight_decay = 3e-4  # decoupled; of sgd, adam and radam an L2 penalty
    config.optimizer.gradient_clip = 5.0  # maximum global norm of the gradient; 0: no clipping
    config.optimizer.arguments = ConfigDict()  # of the optimizer, by optax's names; None: optax's default
    config.optimizer.arguments.nesterov = config_dict.placeholder(bool)  # sgd: Nesterov momentum
    config.optimizer.arguments.b1 = config_dict.placeholder(float)  # decay rate of the first moment
    config.optimizer.arguments.b2 = config_dict.placeholder(float)  # decay rate of the second moment
    config.optimizer.arguments.b3 = config_dict.placeholder(float)  # adan
    config.optimizer.arguments.eps = config_dict.placeholder(float)  # added to the denominator
    config.optimizer.arguments.eps_root = config_dict.placeholder(float)  # added within its square root

    config.schedule = ConfigDict()  # learning rate by epoch
    config.schedule.name = "cosine"  # updated every step; others: see `optim.learning_rate`
    config.schedule.learning_rate = 0.01  # highest, after the warm-up
    config.schedule.minimum = 1e-5  # lowest, at the end
    config.schedule.warm_up_epochs = 3  # epochs of linear warm-up
    config.schedule.reference_warm_up_to_peak = modality == "fusion"  # reference schedules: where the warm-up ends
    config.schedule.patience = 4  # "plateau": epochs without improvement before the rate is multiplied by `factor`
    config.schedule.factor = 0.1  # "plateau" and the "timm" steps: what the rate is multiplied by
    config.schedule.decay_epochs = 30  # "timm_step": epochs between two decays
    config.schedule.milestones = (10, 20, 30)  # "timm_multistep": epochs at which the rate decays
    config.schedule.cooldown = 3  # "plateau": epochs after a reduction that are not counted

    config.train = ConfigDict()  # batches, epochs and logs
    config.train.batch_size = 48  # over all devices; the paper's 8 GPUs times 6
    config.train.microbatches = 1  # gradient accumulation: parts of a batch that are processed in sequence
    config.train.epochs = 100  # passes over the training split
    config.train.ema_decay = 0.0  # of the average of the weights, which is evaluated then; 0: no average
    config.train.log_every_steps = 10  # steps between two lines of the log
    config.train.evaluate_every_epochs = 1  # epochs between two evaluations, each with a checkpoint
    config.train.writers = ("tensorboard",)  # beside metrics.jsonl: "tensorboard", "wandb"
    config.eval = ConfigDict()  # evaluation and inference
    config.eval.batch_size = 48  # over all devices; all views of these clips are in host memory
    config.eval.clips = 1  # temporal views: K takes the middle frame of each K-th part of every interval
    config.eval.crops = 1  # spatial views: 1 centre, 3 along the longer side, 5 corners and centre
    config.checkpoint = ConfigDict()  # which checkpoints are written and kept
    config.checkpoint.best_metric = "top1"  # validation metric by which checkpoints are ranked
    config.checkpoint.best_is = "highest"  # or "lowest", for a loss
    config.checkpoint.keep_best = 1  # number of the best checkpoints that are kept
    config.checkpoint.keep_latest = 2  # evaluated epochs, and as many mid-epoch checkpoints
    config.checkpoint.keep_every_epochs = 0  # also keep every so many epochs; 0: none
    config.checkpoint.every_steps = 500  # mid-epoch checkpoints; 0: only on preemption
    return config


def umdr_config(base: Callable[[str], ConfigDict], argument: str) -> ConfigDict:
    """Returns a data set's config with UMDR and the recipe of its published accuracies in place of the first network.

    Args:
        base: `get_config` of the data set for the first network.
        argument: "rgb", "depth" or "fusion", with "_16" or "_64" for so many frames; 32 by default.
    """
    modality, _, number = argument.partition("_")
    if modality not in STREAMS or number not in ("", "16", "32", "64"):
        expected = f"{', '.join(STREAMS)}, each with _16, _32 or _64 frames"
        raise ValueError(f"the config of UMDR is for {expected}, not {argument!r}")
    config, frames = base(modality), int(number or 32)
    shortest = 8 if frames == 16 else 16
    fields = {
        "network": "umdr",
        "clip.frames": frames,
        "model.branch_frames": (shortest, 2 * shortest, 3 * shortest),
        "model.frp": False,
        "mixing.mixup_alpha": 0.8,
        "mixing.shufflemix_alpha": 0.3,
        "mixing.shufflemix_probability": 0.2,
        "mixing.reference_label": True,
        "loss.distillation": 0.2,
        "loss.distillation_temperature": 0.6,
        "optimizer.arguments.nesterov": True,
        "optimizer.decay_vectors": False,
        "optimizer.weight_decay": 5e-4,
        "schedule.name": "timm_cosine",
        "schedule.warm_up_epochs": 5,
        "train.batch_size": 128,
        "train.epochs": 100,
    }
    if modality == "fusion":
        fields |= {"loss.distillation": 0.0, "schedule.name": "timm_step", "schedule.decay_epochs": 10}
    config.update_from_flattened_dict(fields)
    return config


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the checked config of a file ("configs/ntu_cs.py:depth"), or of one in the package ("ntu_cs:depth").

    What follows the colon is the argument of its `get_config`; `overrides` are flags: "--config.train.batch_size=48".
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


def recorded_config(fields: Mapping[str, Any]) -> ConfigDict:
    """Returns the config that a run or a file of weights records; fields that it lacks have their defaults."""
    modality = fields.get("modality") if isinstance(fields, Mapping) else None
    if not isinstance(modality, str) or modality not in STREAMS:
        raise ValueError(f"config.modality={modality!r}: expected one of {', '.join(STREAMS)}")
    return with_fields(default_config(modality), flatten_dict(fields, sep="."))


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Returns a checked copy of a config with some fields replaced, each by its full name ("train.batch_size")."""
    config = config.copy_and_resolve_references().lock()
    for name, value in fields.items():
        try:
            config.update_from_flattened_dict({name: value})
        except (AttributeError, KeyError) as error:
            raise ValueError(f"config.{name}: no such field") from error
        except TypeError as error:
            raise ValueError(f"config.{name}={value!r}: {error}") from error
    check_config(config)
    return config


def check_config(config: ConfigDict) -> None:
    """Raises ValueError that names every invalid field; `checkpoint.best_metric` is left to the model."""
    if problems := config_rules.problems(config, default_config()):
        raise ValueError("\n  ".join(["invalid config:", *problems]))


def check_divisible(config: ConfigDict, devices: int, *, training: bool = True) -> None:
    """Checks that batches divide evenly among devices, and in `training` each device's clips into microbatches."""
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
