"""A stream of frames (camera, pipe, video, folder), classified again and again over its latest frames."""

import collections
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float

from rgbd_jax.data import loader
from rgbd_jax.data.codec import encode_jpeg
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.inference.clips import ClipError
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.ingest.clip_files import GREY_SPREAD, FrameRange, colour_spread, frame_files, open_video
from rgbd_jax.ingest.problems import RawDataError
from rgbd_jax.modalities import STREAMS

CAMERA, STANDARD_INPUT = "camera:", "-"


@dataclasses.dataclass(frozen=True)
class StreamLabel:
    """What the network says of the latest frames of a stream.

    Attributes:
        frame: number of the last of these frames, counted from 0.
        probabilities: of every class.
        latency: seconds from having that frame to having the answer.
    """

    frame: int
    probabilities: Float[np.ndarray, "k"]
    latency: float


def stream_labels(predictor: Predictor, sources: Mapping[str, str], *, window: int, hop: int) -> Iterator[StreamLabel]:
    """Yields a label each `hop` frames, of the `window` frames before; the first one when the window is full.

    A stream that ends earlier gives one label, of all its frames.

    Args:
        predictor: the network, compiled for one clip.
        sources: modality -> "camera:0", "-" (standard input), a pipe, a video or a folder of frames; frames of two
            modalities are taken in turn.
        window: frames that a label is about.
        hop: frames from one label to the next.

    Raises:
        ClipError: a source cannot be read, or has no frame.
    """
    modalities = STREAMS[predictor.trained.config.modality]
    streams = {modality: encoded_frames(sources[modality], modality) for modality in modalities}
    latest: dict[str, collections.deque[bytes]] = {m: collections.deque(maxlen=window) for m in modalities}
    count = labelled = 0
    while True:
        frames = {modality: next(stream, None) for modality, stream in streams.items()}
        if any(frame is None for frame in frames.values()):
            break
        seen = time.perf_counter()
        for modality, frame in frames.items():
            assert frame is not None
            latest[modality].append(frame)
        count += 1
        if count >= window and (count - window) % hop == 0:
            yield _labelled(predictor, latest, count, seen)
            labelled += 1
    if not count:
        raise ClipError(f"{', '.join(sources[m] for m in modalities)}: holds no frame that can be decoded")
    if not labelled:
        yield _labelled(predictor, latest, count, time.perf_counter())


def _labelled(
    predictor: Predictor, latest: Mapping[str, collections.deque[bytes]], count: int, seen: float
) -> StreamLabel:
    config = predictor.trained.config
    record = ClipRecord(f"frames up to {count - 1}", 0, {m: list(frames) for m, frames in latest.items()})
    batch = {modality: frames[None] for modality, frames in loader.load_clip(record, config).items()}
    probabilities = predictor(batch).probabilities[0]
    return StreamLabel(count - 1, probabilities, time.perf_counter() - seen)


def encoded_frames(source: str, modality: str) -> Iterator[bytes]:
    """Yields the frames of a stream as they come, encoded as those of a clip are.

    Args:
        source: see `stream_labels`.
        modality: "rgb" or "depth"; a video of depth without colours is taken as depth, not as a picture.

    Raises:
        ClipError: it cannot be opened.
    """
    path = Path(source).expanduser()
    if source.startswith(CAMERA) or source == STANDARD_INPUT or not path.is_dir():
        yield from _encoded_video(source, modality)
        return
    try:
        files = frame_files(FrameRange(path))
    except RawDataError as error:
        raise ClipError("; ".join(map(str, error.problems))) from error
    for file in files:
        yield file.read_bytes()


def _encoded_video(source: str, modality: str) -> Iterator[bytes]:
    if source.startswith(CAMERA):
        number = source.removeprefix(CAMERA)
        if not number.isdigit():
            raise ClipError(f"{source}: expected a number after {CAMERA!r}, such as {CAMERA}0")
        capture = cv2.VideoCapture(int(number))
    else:
        if source != STANDARD_INPUT and not Path(source).expanduser().exists():
            raise ClipError(f"{source}: no such file, folder or pipe")
        capture = open_video(Path("pipe:0") if source == STANDARD_INPUT else Path(source).expanduser())
    try:
        if not capture.isOpened():
            raise ClipError(f"{source} cannot be opened: expected a camera, a pipe or file with video, or frames")
        coloured = modality == "rgb"
        while True:
            read, frame = capture.read()
            if not read:
                return
            coloured = coloured or colour_spread(frame) > GREY_SPREAD
            yield encode_jpeg(frame if coloured else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    finally:
        capture.release()
