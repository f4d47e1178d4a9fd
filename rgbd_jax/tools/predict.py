"""Predict the classes of clips, or of a stream at intervals.

rgbd predict --workdir runs/demo --rgb clip.mp4
rgbd predict --workdir runs/demo --rgb camera:0
"""

import argparse
import itertools
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.tools.arguments import add_trained_model, load_trained_model, positive

if TYPE_CHECKING:
    from rgbd_jax.inference.clips import UserClip
    from rgbd_jax.inference.trained import TrainedModel

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    add_trained_model(parser)
    add = parser.add_argument
    kinds = "a video, a folder of frames, a folder of clips, or a list of clips (.txt); may be repeated, modalities "
    kinds += "pair in order. As a stream: the same, a pipe, 'camera:0', or '-' for standard input"
    for modality in MODALITIES:
        add(f"--{modality}", action="append", default=[], metavar="PATH", help=f"{modality} clips: {kinds}")
    add("--top", type=positive, default=5, help="classes to report for each clip (default: 5)")
    add("--json", action="store_true", help="one JSON object a line instead of a table")
    add("--out", type=Path, help="draw class and class-activation map over clips: NAME.mp4, or a folder for several")
    add("--batch_size", type=positive, default=8, help="clips of a batch (default: 8)")
    add("--stream", action="store_true", help="read the paths as streams; cameras and '-' always are")
    add("--window", type=positive, help="frames of a stream for one prediction (default: the model's clip length)")
    add("--hop", type=positive, default=15, help="frames between predictions of a stream (default: 15)")


def run(args: argparse.Namespace) -> None:
    """Prints the most probable classes of each clip, or of a stream as it comes.

    Raises:
        ValueError: a path, the model or some of the clips cannot be used.
        OSError: a drawing cannot be written.
    """
    from rgbd_jax.inference.clips import is_live  # seconds: not before --help

    given = {modality: getattr(args, modality) for modality in MODALITIES}
    live = args.stream or any(is_live(source) for sources in given.values() for source in sources)
    if live and args.out:
        raise ValueError("--out draws clips, not streams: leave out --out, or --stream")
    (_predict_stream if live else _predict_clips)(load_trained_model(args), given, args)


def _predict_clips(trained: "TrainedModel", given: Mapping[str, Sequence[str]], args: argparse.Namespace) -> None:
    from rgbd_jax.inference.clips import find_clips, load_clips
    from rgbd_jax.inference.predictor import Predictor
    from rgbd_jax.inference.video import write_overlay

    clips = find_clips(given, trained.model.modalities)
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
            top = probabilities.argsort(kind="stable")[::-1][: args.top].tolist()
            classes = [_named(label, probabilities, trained.class_names) for label in top]
            width = max(len(entry["class"]) for entry in classes)
            lines = [each.clip.name, *(f"  {x['class']:{width}}  {x['probability']:7.2%}" for x in classes)]
            result = {"clip": each.clip.name, "top": classes}
            print(json.dumps(result) if args.json else "\n".join(lines), flush=True)
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


def _named(label: int, probabilities: Float[np.ndarray, "k"], class_names: Sequence[str]) -> dict[str, Any]:
    return {"label": label, "class": class_names[label], "probability": float(probabilities[label])}


def _predict_stream(trained: "TrainedModel", given: Mapping[str, Sequence[str]], args: argparse.Namespace) -> None:
    from rgbd_jax.inference.predictor import Predictor, stream

    for modality in trained.model.modalities:
        if len(given[modality]) != 1:
            raise ValueError(f"expected one {modality} stream, found {len(given[modality])}: give --{modality} once")
    sources = {modality: given[modality][0] for modality in trained.model.modalities}
    predictor = Predictor(trained, batch_size=1)
    predictor.warm_up()
    window = args.window or trained.config.clip.frames
    log.info("streaming: a prediction every %d frames, for the latest %d", args.hop, window)
    latencies: list[float] = []
    started = time.perf_counter()
    try:
        for prediction in stream(predictor, sources, window=window, hop=args.hop):
            latencies.append(1000 * prediction.latency)
            named = _named(int(prediction.probabilities.argmax()), prediction.probabilities, trained.class_names)
            text = f"frame {prediction.frame:6}  {named['class']}  {named['probability']:.1%}  {latencies[-1]:.0f} ms"
            result = {"frame": prediction.frame, **named, "latency_ms": round(latencies[-1], 1)}
            print(json.dumps(result) if args.json else text, flush=True)
    finally:  # also when the user stops the stream
        if latencies:
            fps = (prediction.frame + 1) / (time.perf_counter() - started)
            text = "%d predictions, latency %.0f ms (median), %.0f ms at most; %.0f frames a second"
            log.info(text, len(latencies), statistics.median(latencies), max(latencies), fps)
