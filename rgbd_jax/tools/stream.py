"""Predict the classes of a stream at intervals: of a camera, a pipe, a video or a folder of frames.

rgbd stream --weights runs/demo --rgb camera:0
ffmpeg -i rtsp://... -f matroska - | rgbd stream --weights runs/demo --rgb -
"""

import argparse
import json
import logging
import math
import statistics
import time

from rgbd_jax.modalities import MODALITIES
from rgbd_jax.printable import printable
from rgbd_jax.tools.arguments import NOT_FINITE, add_trained_model, load_trained_model, positive

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    add_trained_model(parser)
    add = parser.add_argument
    kinds = "'camera:0', a pipe, '-' for standard input, a video, or a folder of frames"
    for modality in MODALITIES:
        add(f"--{modality}", metavar="SOURCE", help=f"{modality} stream: {kinds}")
    add("--window", type=positive, help="frames for one prediction (default: the model's clip length)")
    add("--hop", type=positive, default=15, help="frames between predictions (default: 15)")
    add("--json", action="store_true", help="one JSON object a line instead of a table")


def run(args: argparse.Namespace) -> None:
    """Prints the class of the latest frames, as they come, until the stream ends or the user stops it."""
    from rgbd_jax.inference.clips import encoded_frames  # seconds: not before --help
    from rgbd_jax.inference.predictor import Predictor, stream

    trained = load_trained_model(args)
    modalities = trained.model.modalities
    if missing := [modality for modality in modalities if getattr(args, modality) is None]:
        raise ValueError(f"the model reads {' and '.join(modalities)}: give --{' and --'.join(missing)}")
    readers = {modality: encoded_frames(getattr(args, modality), modality) for modality in modalities}
    predictor = Predictor(trained, batch_size=1)
    predictor.warm_up()
    window = args.window or trained.config.clip.frames
    log.info("streaming: a prediction every %d frames, for the latest %d", args.hop, window)
    latencies: list[float] = []
    started = time.perf_counter()
    try:
        for prediction in stream(predictor, readers, window=window, hop=args.hop):
            latencies.append(1000 * prediction.latency)
            label, name = int(prediction.probabilities.argmax()), prediction.class_name
            probability = float(prediction.probabilities[label])
            if not math.isfinite(probability):
                raise ValueError(f"frame {prediction.frame}: {NOT_FINITE}")
            result = {"frame": prediction.frame, "label": label, "class": name, "probability": probability}
            text = f"frame {prediction.frame:6}  {name}  {probability:.1%}  {latencies[-1]:.0f} ms"
            line = json.dumps({**result, "latency_ms": round(latencies[-1], 1)}) if args.json else printable(text)
            print(line, flush=True)
    finally:  # also when the user stops the stream
        if latencies:
            fps = (prediction.frame + 1) / (time.perf_counter() - started)
            text = "%d predictions, latency %.0f ms (median), %.0f ms at most; %.0f frames a second"
            log.info(text, len(latencies), statistics.median(latencies), max(latencies), fps)
