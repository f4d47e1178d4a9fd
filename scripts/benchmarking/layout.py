"""Prepared clips as the files that the reference reads, and whether it can train with a config at all."""

import operator
from pathlib import Path

import cv2
from ml_collections import ConfigDict

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.data.frames import colour_depth, decode_frame
from rgbd_jax.data.source import ClipSource, Splits

# What is written in the references' code, or is not in it.
_FIXED = {
    "model.width": 1.0,
    "model.attention_heads": 8,
    "model.random_branch_frames": True,
    "model.dropout": 0.1,
    "model.batch_norm_momentum": 0.01,
    "model.dynamic_images": 0,
    "model.dtype": "float32",
    "loss.teacher": 0.0,
    "loss.temperature_epochs": 30,
    "optimizer.name": "sgd",
    "data.transforms.blur": False,  # the first's own switch has no effect
    "train.ema_decay": 0.0,
}
_FIXED_IN_FAMILY = {
    "decoupled": {
        "model.recoupling_hidden": 256,
        "loss.label_smoothing": 0.1,
        "optimizer.decay_vectors": True,
        "schedule.name": "reference_cosine",
        "mixing.mixup_alpha": 0.0,
        "mixing.shufflemix_alpha": 0.0,
    },
    "umdr": {
        "loss.sharpness": True,
        "optimizer.decay_vectors": False,
        "mixing.mixup_per_frame": False,
        "mixing.mixup_dynamic": False,
        "mixing.shufflemix_mode": "random",
        "mixing.same_class_probability": 0.0,
    },
}
_FIXED_IN_FUSION = {
    "decoupled": {
        "fusion.reference_layout": True,
        "fusion.cross_modal_dropout": 0.4,
        "fusion.modality_dropout": 0.5,
        "data.transforms.reference_separate_draws": True,
    },
    "umdr": {
        "data.transforms.reference_separate_draws": True,
        "mixing.mixup_alpha": 0.0,  # it mixes each modality by a draw of its own
    },
}


def check_trainable(config: ConfigDict, splits: Splits) -> None:
    """Checks that the reference of its network can train with a config.

    Raises:
        ValueError: names all fields with which it cannot.
    """
    family, train, evaluation = config.network, config.train, config.eval
    fixed = _FIXED | _FIXED_IN_FAMILY[family] | (_FIXED_IN_FUSION[family] if config.modality == "fusion" else {})
    problems = [
        f"config.{field}={found!r}: the reference has {value!r}"
        for field, value in fixed.items()
        if (found := operator.attrgetter(field)(config)) != value
    ]
    if config.init_from and not config.init_from.endswith(".tar"):
        problems.append(f"config.init_from={config.init_from}: the reference reads *.pth.tar")
    if config.model.temporal_blocks < 3:
        problems.append(f"config.model.temporal_blocks={config.model.temporal_blocks}: the reference needs 3 or more")
    if config.clip.size % 32:
        problems.append(f"config.clip.size={config.clip.size}: the reference needs a multiple of 32")
    if family == "umdr" and not config.schedule.name.startswith("timm_"):
        problems.append(f"config.schedule.name={config.schedule.name!r}: the reference has those of timm")
    if family == "umdr" and config.mixing.shufflemix_alpha and not config.mixing.reference_label:
        problems.append("config.mixing.reference_label=False: the reference has True")
    if family == "umdr" and evaluation.batch_size != int(1.5 * train.batch_size):
        problems.append(
            f"config.eval.batch_size={evaluation.batch_size}: the reference evaluates {int(1.5 * train.batch_size)} "
            f"clips together, 1.5 times config.train.batch_size"
        )
    if not 1 < evaluation.batch_size <= len(splits.evaluation):
        problems.append(
            f"config.eval.batch_size={evaluation.batch_size}: the reference leaves out the last incomplete batch; "
            f"expected 2 to {len(splits.evaluation)}, better a divisor of it"
        )
    if problems:
        raise ValueError("\n  ".join(["the reference cannot train with this config:", *problems]))


def write_layout(splits: Splits, modality: str, config: ConfigDict, root: Path) -> None:
    """Writes the clips of both splits under `root` as the reference's data set has them, and its lists; once.

    It is that of NvGesture where the config has its crops, otherwise that of THU-READ.
    """
    nvgesture = config.data.transforms.reference_nvgesture_crop
    colours = None if config.data.depth.reference_person_crop else config.data.depth
    for phase, split in (("train", splits.training), ("valid", splits.evaluation)):
        folder, prefix, lists = root / modality, f"{phase}_", f"{phase}.txt"
        if not nvgesture:
            folder, prefix = root, {"rgb": "RGB/RGB_", "depth": "Depth/D_"}[modality] + prefix
            lists = lists if modality == "rgb" or config.network == "umdr" else f"depth_{phase}_lst.txt"
        if not (root / modality / lists).exists():
            lines = write_clips(split, modality, folder, prefix, colours)
            with atomic_write(root / modality / lists) as written:
                written.write_text("".join(lines))


def write_clips(
    source: ClipSource,
    modality: str,
    folder: Path,
    prefix: str = "",
    colours: ConfigDict | None = None,
    limit: int | None = None,
) -> list[str]:
    """Writes clips by the names that the reference reads; returns the lines of its list: path, frames, label.

    JPEG is written as it is stored; other frames as PNG, which data sets have compressed. The prefix is that of the
    clips' numbers; `colours`, `config.data.depth`, are those that the network is to see single-channel depth in.
    """
    lines = []
    for number in range(len(source) if limit is None else min(limit, len(source))):
        clip = source[number]
        frames = clip.frames[modality]
        path = folder / f"{prefix}{number}"
        path.mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(frames):
            if isinstance(frame, bytes) and frame.startswith(b"\xff\xd8\xff"):
                (path / f"{i:06d}.jpg").write_bytes(frame)
                continue
            image = decode_frame(frame, modality)
            image = image if colours is None else colour_depth(image, colours)
            if image.ndim == 3:
                image = image[..., 2::-1]  # OpenCV's order
            (path / f"MDepth-{i + 1:08d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        lines.append(f"{prefix}{number} {len(frames)} {clip.label}\n")
    return lines
