"""The prediction for one clip, with videos and pictures of the evidence for it."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.inference import drawing
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import TrainedModel
from rgbd_jax.inference.video import write_video
from rgbd_jax.metrics import softmax

STRIP_FRAMES, TILE, GAP, GREY = 8, 112, 4, 255  # frames of a strip, their size and distance in pixels, the background
MAX_SIDE = 480  # pixels of a video's longer side


@dataclasses.dataclass(frozen=True)
class HeadPrediction:
    """The class that one head predicts, and its probability."""

    title: str
    class_name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class ClipExplanation:
    """The prediction for one clip, and the evidence for it.

    Attributes:
        probabilities: class name -> probability.
        heads: prediction of each head, the deciding one first.
        videos: modality -> the clip under its class-activation maps, an .mp4 file.
        strips: modality -> sampled frames; below them their class-activation maps, and motion heat maps if there are.
        seconds: stage -> its duration.
    """

    probabilities: Mapping[str, float]
    heads: list[HeadPrediction]
    videos: Mapping[str, Path]
    strips: Mapping[str, drawing.Picture]
    seconds: Mapping[str, float]


class DemoModel:
    """A trained model that explains one clip at a time, of which it sees one view; compiled when this is made."""

    def __init__(self, trained: TrainedModel):
        self.trained = trained
        self._config = trained.config.copy_and_resolve_references()
        self._config.eval.clips = self._config.eval.crops = 1
        self._predictor = Predictor(trained, batch_size=1, explained=True)
        self._predictor.warm_up()

    def explain(self, record: ClipRecord, frame_rate: float, folder: Path) -> ClipExplanation:
        """Explains the prediction for a clip; its videos are written into `folder`.

        Raises:
            ValueError: a frame cannot be decoded or used.
            OSError: a video cannot be written.
        """
        times = [time.perf_counter()]
        frames = loader.load_clip(record, self._config)  # modality -> t h w 3
        times.append(time.perf_counter())
        prediction = self._predictor({modality: x[None] for modality, x in frames.items()})
        times.append(time.perf_counter())
        videos, strips = {}, {}
        for modality, seen in frames.items():
            activation = prediction.class_activation_map[modality][0]  # t h2 w2
            videos[modality] = folder / f"{modality}.mp4"
            pictures = drawing.overlay(record.frames[modality], modality, self._config, activation, MAX_SIDE)
            write_video(videos[modality], pictures, frame_rate)
            shown = np.unique(np.linspace(0, len(seen) - 1, STRIP_FRAMES).round().astype(int))
            tiles = [drawing.resized(seen[i], (TILE, TILE)) for i in shown]
            evidence = drawing.relative(activation)
            rows = [tiles, [drawing.tinted(tile, evidence[i]) for tile, i in zip(tiles, shown, strict=True)]]
            if modality in prediction.heat_map:
                rows.append([drawing.heat_picture(prediction.heat_map[modality][0, i]) for i in shown])
            strips[modality] = drawing.film(rows, TILE, GAP, GREY)
        times.append(time.perf_counter())
        names = self.trained.class_names
        heads = []
        for head, title in self.trained.model.family.heads.items():
            probabilities = softmax(prediction.heads[head][0])
            label = int(probabilities.argmax())
            heads.append(HeadPrediction(title, names[label], float(probabilities[label])))
        return ClipExplanation(
            probabilities=dict(zip(names, prediction.probabilities[0].tolist(), strict=True)),
            heads=heads,
            videos=videos,
            strips=strips,
            seconds=dict(zip(("loading", "inference", "drawing"), np.diff(times).tolist(), strict=True)),
        )
