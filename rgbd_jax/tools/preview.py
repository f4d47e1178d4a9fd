"""Draws some prepared clips as the network sees them: rows of frames and of heat maps, one clip below the other.

python -m rgbd_jax data preview rgbd_demo --out sheet.png
python -m rgbd_jax data preview ntu_rgbd --out sheet.png --config configs/ntu_cs.py:depth --augmented
"""

import argparse
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.config import default_config, load_config
from rgbd_jax.data.loader import Batch, eval_batches, train_batches
from rgbd_jax.data.source import ClipRecord, PreparedSplit, open_split
from rgbd_jax.inference.drawing import Picture, film, heat_picture
from rgbd_jax.modalities import STREAMS
from rgbd_jax.models.heat_map import heat_maps
from rgbd_jax.storage import disk_path

GAP, RULE, SMALLEST = 4, 6, 112  # pixels between pictures and below a clip; smaller frames are enlarged to the third
TEXT_WIDTH, TEXT_SIZE, LINE_HEIGHT, LINE_LENGTH = 190, 14, 19, 25  # pixels, the last one letters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m rgbd_jax data preview`."""
    add = parser.add_argument
    add("dataset", help="name of a prepared data set")
    add("--data_dir", default="data", help="where prepared data sets lie (default: %(default)s)")
    add("--out", type=disk_path, required=True, help="the picture: .png or .jpg")
    add("--split", help="the split or a part of it (default: train, or the first protocol's)")
    add("--clips", type=int, default=6, help="number of clips (default: %(default)s)")
    add("--frames", type=int, default=8, help="frames shown of a clip (default: %(default)s)")
    add("--seed", type=int, default=0, help="chooses the clips (default: %(default)s)")
    add("--config", help="config file, for its transforms (default: the paper's, of all modalities)")
    add("--augmented", action="store_true", help="use the training transform, not the evaluation's")


def run(args: argparse.Namespace) -> None:
    """Writes the picture."""
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out={args.out}: expected a name that ends in .png or .jpg")
    source = open_split(args.dataset, args.data_dir, args.split)
    modality = next(name for name, modalities in STREAMS.items() if modalities == source.modalities)
    config = default_config(modality)
    if args.config:
        config = load_config(args.config if ":" in args.config else f"{args.config}:{modality}", args.overrides)
    sheet = draw_preview(source, config, clips=args.clips, frames=args.frames, seed=args.seed, augmented=args.augmented)
    with atomic_write(args.out) as unfinished:
        unfinished.write_bytes(cv2.imencode(args.out.suffix, sheet[..., ::-1])[1].tobytes())
    print(f"{args.out}: {min(args.clips, len(source))} of {len(source)} clips of {source.split}")


def draw_preview(
    source: PreparedSplit, config: ConfigDict, *, clips: int, frames: int = 8, seed: int = 0, augmented: bool = False
) -> Picture:
    """Draws a random sample of clips in RGB, as `rgbd_jax.data.loader` loads them, heat maps white where hottest.

    Raises:
        ValueError: a setting cannot be used, or a clip cannot be read.
    """
    if clips < 1 or frames < 1:
        raise ValueError(f"a preview needs at least 1 clip and 1 frame, found --clips={clips} --frames={frames}")
    rng = np.random.default_rng(seed)
    sample = source.select(np.sort(rng.choice(len(source), min(clips, len(source)), replace=False)).tolist())
    config = config.copy_and_resolve_references()
    config.update({"seed": seed, "eval": {"clips": 1, "crops": 1}})
    batches = (train_batches if augmented else eval_batches)(sample, config, batch_size=1)
    by_record = {int(batch["record"][0]): batch for _, batch in zip(range(len(sample)), batches, strict=False)}
    return np.concatenate([_draw_clip(by_record[i], config, frames, sample[i], source) for i in range(len(sample))])


def _draw_clip(batch: Batch, config: ConfigDict, frames: int, clip: ClipRecord, source: PreparedSplit) -> Picture:
    window, rows = config.model.frp_window, []
    title = [clip.name, f"{clip.label}: {source.class_names[clip.label]}", ""]
    for modality in STREAMS[config.modality]:
        seen = batch["frames"][modality]  # 1 t h w 3
        count = seen.shape[1]
        shown = np.unique((np.arange(1, frames + 1) * count // frames - 1).clip(0))  # the last ones of equal parts
        heat = np.stack([heat_picture(each) for each in np.asarray(heat_maps(seen, window))[0, shown, ..., 0]])
        sampled = [f"{modality}: {len(shown)} of {count} frames", f"sampled from {len(clip.frames[modality])}"]
        rows.append(_draw_row(seen[0, shown], [*title, *sampled], frames))
        rows.append(_draw_row(heat, [f"heat maps of {modality},", f"each of {window} frames"], frames))
        title = []
    return np.concatenate([*rows, np.full((RULE, rows[0].shape[1], 3), 160, np.uint8)])


def _draw_row(pictures: UInt8[np.ndarray, "t h w 3"], lines: Sequence[str], columns: int) -> Picture:
    scale = -(-SMALLEST // len(pictures[0]))
    enlarged = np.repeat(np.repeat(pictures, scale, axis=1), scale, axis=2)  # every pixel stays visible
    size = enlarged.shape[1]
    row = np.full((size + GAP, TEXT_WIDTH + columns * (size + GAP), 3), 255, np.uint8)
    strip = film([list(enlarged)], size, GAP, 255)
    row[:size, TEXT_WIDTH : TEXT_WIDTH + strip.shape[1]] = strip
    wrapped = [part for line in lines for part in textwrap.wrap(line, LINE_LENGTH) or [""]]
    for number, part in enumerate(wrapped, 1):
        row = cv2.putText(row, part, (GAP, number * LINE_HEIGHT), (0, 0, 0), cv2.FontFace("sans"), TEXT_SIZE, 400)[1]
    return row
