"""The config: its defaults, and loading it from a config file."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags


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
    """Returns the config of a file with overrides applied.

    Args:
        spec: path of a config file, or name of one that comes with the package, with an argument such as the modality
            after a colon: "configs/ntu_cs.py:depth", "ntu_cs:depth".
        overrides: flags such as "--config.train.batch_size=48".

    Raises:
        ValueError: there is no such file, or a field does not exist or cannot have the value.
    """
    name, _, argument = spec.partition(":")
    path = Path(name) if name.endswith(".py") else _packaged_configs() / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _packaged_configs().glob("[!_]*.py")))
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
    return config.value


def _packaged_configs() -> Path:
    return Path(str(importlib.resources.files("rgbd_jax.configs")))
