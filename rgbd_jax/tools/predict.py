"""Predict the classes of clips.

rgbd predict --weights demo-fusion --example push
rgbd predict --weights runs/demo --rgb clip.mp4 --out drawn.mp4
"""

import argparse
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.printable import printable
from rgbd_jax.storage import disk_path
from rgbd_jax.tools.arguments import NOT_FINITE, add_trained_model, load_trained_model, positive

if TYPE_CHECKING:
    from rgbd_jax.inference.clips import UserClip

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    add_trained_model(parser)
    add = parser.add_argument
    kinds = "a video, a folder of frames, a folder of clips, or a list of clips (.txt); may be repeated, modalities "
    kinds += "pair in order"
    for modality in MODALITIES:
        add(f"--{modality}", action="append", default=[], metavar="PATH", help=f"{modality} clips: {kinds}")
    motion = "a rendered hand motion of the demo instead of clips (default: swipe_left)"
    add("--example", nargs="?", const="swipe_left", metavar="MOTION", help=motion)
    add("--top", type=positive, default=5, help="classes to report for each clip (default: 5)")
    add("--json", action="store_true", help="one JSON object a line instead of a table")
    out = "draw class and class-activation map over clips: NAME.mp4, or a folder for several"
    add("--out", type=disk_path, help=out)
    add("--batch_size", type=positive, default=8, help="clips of a batch (default: 8)")


def run(args: argparse.Namespace) -> None:
    """Prints the most probable classes of each clip."""
    from rgbd_jax.inference.clips import UserClip, find_clips, is_live, load_clips  # seconds: not before --help
    from rgbd_jax.inference.example import example
    from rgbd_jax.inference.predictor import Predictor
    from rgbd_jax.inference.video import write_overlay

    given = {modality: getattr(args, modality) for modality in MODALITIES}
    if live := [source for sources in given.values() for source in sources if is_live(source)]:
        raise ValueError(f"{live[0]} is a stream, not a clip: use `rgbd stream`")
    trained = load_trained_model(args)
    modalities = trained.model.modalities
    if args.example:
        motion = example(args.example)
        clips = [UserClip(f"example_{args.example}", {modality: motion[modality] for modality in modalities})]
    else:
        clips = find_clips(given, modalities)
    targets = {clip: _drawing(args.out.expanduser(), clip, clips) for clip in clips} if args.out else {}
    predictor = Predictor(trained, batch_size=min(args.batch_size, len(clips)), explained=bool(targets))
    loaded = load_clips(clips, trained.config)
    failed = 0
    while batch := list(itertools.islice(loaded, predictor.batch_size)):
        usable = [each for each in batch if not each.problem]
        failed += len(batch) - len(usable)
        for problem in filter(None, (each.problem for each in batch)):
            log.error("%s", problem)
        if not usable:
            continue
        frames = {m: np.stack([each.frames[m] for each in usable]) for m in trained.model.modalities}  # b *v t h w 3
        prediction = predictor(frames)
        for index, each in enumerate(usable):
            probabilities = prediction.probabilities[index]  # k
            if not np.isfinite(probabilities).all():
                log.error("%s: %s", each.clip.name, NOT_FINITE)
                failed += 1
                continue
            top = probabilities.argsort(kind="stable")[::-1][: args.top].tolist()
            classes = [
                {"label": label, "class": trained.class_names[label], "probability": float(probabilities[label])}
                for label in top
            ]
            width = max(len(entry["class"]) for entry in classes)
            lines = [each.clip.name, *(f"  {x['class']:{width}}  {x['probability']:7.2%}" for x in classes)]
            result = {"clip": each.clip.name, "top": classes}
            print(json.dumps(result) if args.json else "\n".join(map(printable, lines)), flush=True)
            if targets:
                write_overlay(targets[each.clip], each, trained, prediction, index)
                log.info("wrote %s", targets[each.clip])
    if failed:
        raise ValueError(f"{failed} of {len(clips)} clips could not be used (see above)")


def _drawing(out: Path, clip: "UserClip", clips: "Sequence[UserClip]") -> Path:
    """Returns where a clip is drawn: `out` itself if it ends in .mp4, else a file in that folder."""
    name, target = Path(clip.name), out
    if out.suffix.lower() != ".mp4":
        alone = sum(Path(other.name).stem == name.stem for other in clips) == 1
        target = out / f"{name.stem if alone else f'{name.parent.name}_{name.stem}'}.mp4"
    elif len(clips) > 1:
        raise ValueError(f"--out {out} is one file, for {len(clips)} clips; give a folder")
    if target.exists():
        raise ValueError(f"--out: {target} exists already; give another name, or remove it")
    return target
