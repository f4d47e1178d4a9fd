"""What a network says of one clip, with a video of where it looked and pictures of the motion it was shown."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax import sampling
from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.inference import drawing
from rgbd_jax.inference.overlay import overlaid
from rgbd_jax.inference.predictor import Prediction, Predictor
from rgbd_jax.inference.trained import TrainedNetwork
from rgbd_jax.inference.video import write_video
from rgbd_jax.metrics import softmax
from rgbd_jax.modalities import STREAMS

TOP = 5  # classes
_COLUMNS = 8  # frames of a strip
_TILE = 112  # pixels a side, in a strip
_GAP = 4  # pixels
_LONGEST = (320, 480)  # pixels of a video's longer side: smaller frames are enlarged, larger ones shrunk
_PAPER = 255  # grey between the tiles


@dataclasses.dataclass(frozen=True)
class HeadPrediction:
    """What one head says.

    Attributes:
        head: its name in words.
        label: the class that it is for.
        confidence: probability of that class.
    """

    head: str
    label: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What the network says of one clip.

    Attributes:
        name: of the clip.
        frames: how many there are.
        size: width and height of the first frame of the first modality, pixels.
        top: the most probable classes, label and probability, best first; at most five.
        opinions: of every head, the deciding one first.
        videos: modality -> the clip with its class-activation map over it, an .mp4 file.
        strips: modality -> some of the frames as the network saw them, below them the same with the class-activation
            map, and below these their motion heat map, if it has one.
        with_heat: whether the strips have heat maps.
        places: columns and rows of the class-activation maps.
        seconds: part of the work -> how long it took.
    """

    name: str
    frames: int
    size: tuple[int, int]
    top: Sequence[tuple[int, float]]
    opinions: Sequence[HeadPrediction]
    videos: Mapping[str, Path]
    strips: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    with_heat: bool
    places: tuple[int, int]
    seconds: Mapping[str, float]


class DemoModel:
    """Asks one network about one clip at a time; it is compiled when this is made.

    Args:
        trained: the network; of clips it sees one view, whatever its config says of evaluation.

    Raises:
        ValueError: the network's config cannot be used.
    """

    def __init__(self, trained: TrainedNetwork):
        self.trained = trained
        self.config: ConfigDict = trained.config.copy_and_resolve_references()
        self.config.eval.clips = self.config.eval.crops = 1
        self.modalities = STREAMS[self.config.modality]
        self._ask = Predictor(trained, batch_size=1, explained=True)
        shape = (1, self.config.clip.frames, self.config.clip.size, self.config.clip.size, 3)
        self._ask(dict.fromkeys(self.modalities, np.zeros(shape, np.uint8)))

    def __call__(self, record: ClipRecord, frames_per_second: float, folder: Path) -> Analysis:
        """Returns what the network says of a clip.

        Args:
            record: the clip.
            frames_per_second: of the clip.
            folder: where the videos go.

        Raises:
            ValueError: a frame cannot be decoded or used.
            OSError: a video cannot be written.
        """
        started = time.perf_counter()
        frames = loader.load_clip(record, self.config)
        decoded = time.perf_counter()
        said = self._ask({modality: of_modality[None] for modality, of_modality in frames.items()})
        asked = time.perf_counter()
        count = min(len(record.frames[modality]) for modality in self.modalities)
        numbers = sampling.sample_frames(count, self.config.clip.frames, None)
        videos, strips = {}, {}
        for modality in self.modalities:
            encoded = record.frames[modality][:count]
            activation = drawing.relative(said.activation[modality][0])
            videos[modality] = folder / f"{modality}.mp4"
            shown = overlaid(encoded, modality, self.config, activation, _LONGEST)
            write_video(videos[modality], shown, frames_per_second)
            heat = said.heat[modality][0] if modality in said.heat else None
            strips[modality] = self._strip(encoded, modality, numbers, activation, heat)
        main = self.modalities[0]
        height, width = drawing.shown_frame(record.frames[main][0], main, self.config).shape[:2]
        probabilities = said.probabilities[0]
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        return Analysis(
            name=record.name,
            frames=count,
            size=(width, height),
            top=[(int(label), float(probabilities[label])) for label in best],
            opinions=self._opinions(said),
            videos=videos,
            strips=strips,
            with_heat=bool(said.heat),
            places=said.activation[main].shape[:1:-1],
            seconds={
                "loading the frames": decoded - started,
                "the network": asked - decoded,
                "the pictures": time.perf_counter() - asked,
            },
        )

    def _opinions(self, said: Prediction) -> list[HeadPrediction]:
        branches = zip(("small", "medium", "large"), self.config.model.branch_frames, strict=True)
        words = {
            "logits": "both streams, fused" if self.trained.stream.fusion else "all branches together",
            "rgb": "RGB stream",
            "depth": "depth stream",
            **{head: f"branch of {frames} frames" for head, frames in branches},
        }
        opinions = []
        for head in (head for head in words if head in said.heads):
            probabilities = softmax(said.heads[head][0])
            label = int(np.argmax(probabilities))
            opinions.append(HeadPrediction(words[head], label, float(probabilities[label])))
        return opinions

    def _strip(
        self,
        encoded: Sequence[bytes],
        modality: str,
        numbers: np.ndarray,
        activation: Float[np.ndarray, "t h2 w2"],
        heat: Float[np.ndarray, "t h w"] | None,
    ) -> UInt8[np.ndarray, "h w 3"]:
        columns = np.unique(np.linspace(0, len(numbers) - 1, _COLUMNS).round().astype(int))
        seen = [self._in_view(encoded[numbers[column]], modality) for column in columns]
        rows = [seen, [drawing.tinted(tile, activation[column]) for tile, column in zip(seen, columns, strict=True)]]
        if heat is not None:
            rows.append([drawing.heat_picture(heat[column]) for column in columns])
        return drawing.film(rows, _TILE, _GAP, _PAPER)

    def _in_view(self, encoded: bytes, modality: str) -> UInt8[np.ndarray, "h w 3"]:
        """Returns what the network sees of a frame, in the colours in which people look at it."""
        frame = drawing.shown_frame(encoded, modality, self.config)
        height, width = frame.shape[:2]
        view = drawing.place_in_view(self.config, width, height)
        matrix = np.diag([_TILE, _TILE, 1.0]) @ view @ np.diag([1 / width, 1 / height, 1.0])
        shrinking = 1 / max(1e-6, min(matrix[0, 0], matrix[1, 1]))
        if shrinking > 2:  # else every third pixel or so would be taken, and the others not
            small = max(1, round(width / shrinking)), max(1, round(height / shrinking))
            frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
            matrix = matrix @ np.diag([width / small[0], height / small[1], 1.0])
        return cv2.warpAffine(
            frame, matrix[:2], (_TILE, _TILE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
