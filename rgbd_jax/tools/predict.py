"""`python -m rgbd_jax.tools.predict --workdir runs/demo --rgb clip.mp4`, for clips and for streams."""

import contextlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags
from ml_collections import config_flags

from rgbd_jax import console

if TYPE_CHECKING:
    from rgbd_jax.inference.clips import LoadedClip, UserClip
    from rgbd_jax.inference.predictor import Prediction
    from rgbd_jax.inference.trained import TrainedNetwork

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, a converted checkpoint, or a file of PyTorch.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of a run is taken.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with the stream after a colon (:depth); needed for what is no run's folder."
)
_RGB = flags.DEFINE_multi_string(
    "rgb",
    [],
    "A video, a folder of frames, a folder of clips, or a list of clips (.txt); several may be given. Of a stream: "
    "the same, a pipe, 'camera:0', or '-' for standard input.",
)
_DEPTH = flags.DEFINE_multi_string("depth", [], "The same for depth; pairs with --rgb in order.")
_TOP = flags.DEFINE_integer("top", 5, "How many classes are told of each clip.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "One JSON object a line instead of a table.")
_OUT = flags.DEFINE_string(
    "out", None, "Draws label and class-activation map over the clip: NAME.mp4 for one clip, a folder for several."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips that go through the network together.", lower_bound=1)
_STREAM = flags.DEFINE_bool("stream", False, "Takes --rgb and --depth as streams; cameras and '-' always are.")
_WINDOW = flags.DEFINE_integer(
    "window", None, "Frames of a stream that a label is about; the clip length of the network if not given.", 1
)
_HOP = flags.DEFINE_integer("hop", 15, "Frames of a stream from one label to the next.", lower_bound=1)
flags.mark_flag_as_required("workdir")

log = logging.getLogger("rgbd_jax")


def main(argv: list[str]) -> None:
    """Tells the most probable classes of every clip, or of a stream as it comes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; give clips as --rgb=PATH or --depth=PATH")
    console.log_to_stderr()
    console.keep_compiled_programs()
    try:
        failed = _run()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the results has heard enough
        sys.stderr.close()  # Python would tell of it once more
        sys.exit(0)
    except (ValueError, OSError) as error:
        log.debug("where it happened:", exc_info=True)
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {failed} of the clips could not be used (told above)")


def _run() -> int:
    """Does what the flags say; returns how many clips could not be used."""
    # After the flags are read: importing takes seconds, --help should not.
    from rgbd_jax.inference.clips import find_clips
    from rgbd_jax.inference.streaming import CAMERA, STANDARD_INPUT
    from rgbd_jax.inference.trained import load_trained

    given = {"rgb": _RGB.value, "depth": _DEPTH.value}
    live = any(text == STANDARD_INPUT or text.startswith(CAMERA) for texts in given.values() for text in texts)
    if (_STREAM.value or live) and _OUT.value:
        raise ValueError("--out draws clips, not streams: leave out --out, or --stream")
    trained = load_trained(str(_WORKDIR.value), _CHECKPOINT.value, _CONFIG.value)
    if _STREAM.value or live:
        _classify_stream(trained, given)
        return 0
    return _classify_clips(trained, find_clips(given, trained.config.modality))


def _classify_clips(trained: "TrainedNetwork", clips: "list[UserClip]") -> int:
    from rgbd_jax.inference.clips import batched, load_clips
    from rgbd_jax.inference.overlay import drawn_file, write_overlay
    from rgbd_jax.inference.predictor import Predictor

    targets = {clip: drawn_file(Path(_OUT.value), clip, clips) for clip in clips} if _OUT.value else {}
    predictor = Predictor(trained, batch_size=min(_BATCH_SIZE.value, len(clips)), explained=bool(targets))
    failed = 0
    for batch in batched(load_clips(clips, trained.config), predictor.batch_size):
        for broken in (loaded for loaded in batch if loaded.problem):
            log.error("%s", broken.problem)
            failed += 1
        usable = [loaded for loaded in batch if not loaded.problem]
        if not usable:
            continue
        prediction = predictor.of_clips([loaded.frames for loaded in usable])
        for place, loaded in enumerate(usable):
            _tell_clip(trained, loaded, prediction, place)
            if loaded.clip in targets:
                write_overlay(targets[loaded.clip], loaded, trained, prediction, place)
                log.info("drawn into %s", targets[loaded.clip])
    return failed


def _tell_clip(trained: "TrainedNetwork", loaded: "LoadedClip", prediction: "Prediction", place: int) -> None:
    shares = prediction.probabilities[place]
    top = shares.argsort(kind="stable")[::-1][: _TOP.value]
    if _JSON.value:
        classes = [
            {"label": int(label), "class": trained.class_names[label], "probability": float(shares[label])}
            for label in top
        ]
        _say(json.dumps({"clip": loaded.clip.name, "top": classes}))
        return
    _say(loaded.clip.name)
    width = max(len(trained.class_names[label]) for label in top)
    for label in top:
        _say(f"  {trained.class_names[label]:{width}}  {shares[label]:7.2%}")


def _classify_stream(trained: "TrainedNetwork", given: dict[str, list[str]]) -> None:
    from rgbd_jax.inference.clips import ClipError
    from rgbd_jax.inference.predictor import Predictor
    from rgbd_jax.inference.streaming import stream_labels
    from rgbd_jax.modalities import STREAMS

    sources = {}
    for modality in STREAMS[trained.config.modality]:
        if len(given[modality]) != 1:
            raise ClipError(f"a stream of {modality} is needed: give --{modality} once, found {len(given[modality])}")
        (sources[modality],) = given[modality]
    predictor = Predictor(trained, batch_size=1)
    predictor.warm_up()
    window = _WINDOW.value or trained.config.clip.frames
    log.info("listening: a label every %d frames, of the %d before it", _HOP.value, window)
    with _summary() as (latencies, frames):
        for said in stream_labels(predictor, sources, window=window, hop=_HOP.value):
            latencies.append(said.latency)
            frames.append(said.frame + 1)
            label = int(said.probabilities.argmax())
            name, confidence = trained.class_names[label], float(said.probabilities[label])
            if _JSON.value:
                told: dict[str, Any] = {"frame": said.frame, "label": label, "class": name, "probability": confidence}
                _say(json.dumps({**told, "latency_ms": round(said.latency * 1000, 1)}))
            else:
                _say(f"frame {said.frame:6}  {name}  {confidence:.1%}  {said.latency * 1000:.0f} ms")


@contextlib.contextmanager
def _summary() -> Iterator[tuple[list[float], list[int]]]:
    """Collects latencies and frame numbers, and tells them at the end, also when the user stops the stream."""
    latencies: list[float] = []
    frames: list[int] = []
    started = time.perf_counter()
    try:
        yield latencies, frames
    finally:
        if latencies:
            seconds = time.perf_counter() - started
            log.info(
                "%d labels, latency %.0f ms (median), %.0f ms at most; %.0f frames a second in all",
                len(latencies), 1000 * statistics.median(latencies), 1000 * max(latencies), frames[-1] / seconds,
            )  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=console.parse_flags)
