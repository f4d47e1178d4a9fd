"""Predictions for a stream of frames (camera, pipe, video, folder): the latest frames are classified at intervals."""

import collections
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float

from rgbd_jax.data import loader
from rgbd_jax.data.frames import encode_jpeg
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.ingest.clip_files import GREY_SPREAD, FrameRange, colour_spread, frame_files, open_video
from rgbd_jax.ingest.problems import RawDataError

CAMERA, STANDARD_INPUT = "camera:", "-"


@dataclasses.dataclass(frozen=True)
class StreamPrediction:
    """The prediction for the latest frames of a stream."""

    frame: int  # number of the last frame, counted from 0
    probabilities: Float[np.ndarray, "k"]
    latency: float  # seconds from this frame to its prediction


def is_live(source: str) -> bool:
    """Returns whether a source is a camera or standard input, which can only be streamed."""
    return source == STANDARD_INPUT or source.startswith(CAMERA)


def stream(predictor: Predictor, sources: Mapping[str, str], *, window: int, hop: int) -> Iterator[StreamPrediction]:
    """Yields a prediction for the latest `window` frames, first when there are as many, then every `hop` frames.

    A stream that ends earlier gives one prediction, for all of its frames.

    Args:
        predictor: the model, compiled for batches of one clip.
        sources: modality -> "camera:0", "-" (standard input), a pipe, a video or a folder of frames.
        window: frames of a prediction.
        hop: frames from one prediction to the next.

    Raises:
        ValueError: a source cannot be read, or has no frame.
    """
    modalities, config = predictor.trained.model.modalities, predictor.trained.config
    latest: collections.deque[tuple[bytes, ...]] = collections.deque(maxlen=window)

    def predict(arrived: float) -> StreamPrediction:
        frames = dict(zip(modalities, zip(*latest, strict=True), strict=True))
        clip = loader.load_clip(ClipRecord(f"frames up to {count - 1}", 0, frames), config)  # modality -> *v t h w 3
        probabilities = predictor({modality: x[None] for modality, x in clip.items()}).probabilities[0]
        return StreamPrediction(count - 1, probabilities, time.perf_counter() - arrived)

    count = 0
    readers = [encoded_frames(sources[modality], modality) for modality in modalities]
    for count, frames in enumerate(zip(*readers, strict=False), 1):
        arrived = time.perf_counter()
        latest.append(frames)
        if count >= window and (count - window) % hop == 0:
            yield predict(arrived)
    if not count:
        raise ValueError(f"{', '.join(sources[modality] for modality in modalities)}: no frame can be decoded")
    if count < window:
        yield predict(time.perf_counter())


def encoded_frames(source: str, modality: str) -> Iterator[bytes]:
    """Yields the frames of a source as they come, encoded as those of a clip; a grey depth video is one channel.

    Raises:
        ValueError: the source cannot be opened.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        try:
            files = frame_files(FrameRange(path))
        except RawDataError as error:
            raise ValueError("; ".join(map(str, error.problems))) from error
        yield from (file.read_bytes() for file in files)
        return
    if source.startswith(CAMERA):
        number = source.removeprefix(CAMERA)
        if not number.isdigit():
            raise ValueError(f"{source}: expected a number after {CAMERA!r}, such as {CAMERA}0")
        capture = cv2.VideoCapture(int(number))
    else:
        if source != STANDARD_INPUT and not path.exists():
            raise ValueError(f"{source}: no such file, folder or pipe")
        capture = open_video(Path("pipe:0") if source == STANDARD_INPUT else path)
    try:
        if not capture.isOpened():
            raise ValueError(f"{source} cannot be opened: expected a camera, a pipe or file with video, or frames")
        coloured = modality == "rgb"
        while (read := capture.read())[0]:
            frame = read[1]  # h w 3, BGR
            coloured = coloured or colour_spread(frame) > GREY_SPREAD
            yield encode_jpeg(frame if coloured else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    finally:
        capture.release()
