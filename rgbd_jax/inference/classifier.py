"""A trained network as a Python object: predictions, streams and features of clips."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from rgbd_jax.config import load_config
from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord
from rgbd_jax.inference import drawing
from rgbd_jax.inference.clips import CAMERA, checked_frame, encoded_frames, find_clips, paired, read_user_clip
from rgbd_jax.inference.predictor import Prediction, Predictor, StreamPrediction, stream
from rgbd_jax.inference.trained import TrainedModel, load_trained
from rgbd_jax.metrics import softmax

Clip = str | Path | np.ndarray
"""A video, a folder of frames, or the frames: RGB as uint8 t h w 3; depth as uint8 or uint16 t h w, or t h w 1."""
Frames = str | Path | int | Iterable[np.ndarray]
"""Frames as they come: an iterator of arrays h w [c], a camera's number, a pipe, a video or a folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClipPrediction:
    """The prediction for one clip."""

    name: str  # the path of the clip, or "array"
    heads: Mapping[str, Float[np.ndarray, "k"]]  # head -> logits; "logits" decides
    class_names: Sequence[str]  # by label
    record: ClipRecord  # the frames as they were given
    frames: Mapping[str, UInt8[np.ndarray, "t h w 3"]]  # modality -> the frames that the network saw
    _classifier: "Classifier" = dataclasses.field(repr=False)

    @property
    def logits(self) -> Float[np.ndarray, "k"]:
        """The logits of the prediction."""
        return self.heads["logits"]

    @property
    def probabilities(self) -> Float[np.ndarray, "k"]:
        """The probability of each class."""
        return softmax(self.logits)

    @property
    def label(self) -> int:
        """The predicted class, counted from 0."""
        return int(self.logits.argmax())

    @property
    def class_name(self) -> str:
        """The name of the predicted class."""
        return self.class_names[self.label]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Returns the names and probabilities of the most probable classes, the most probable first."""
        order = self.probabilities.argsort(kind="stable")[::-1][:count].tolist()
        return [(self.class_names[label], float(self.probabilities[label])) for label in order]

    @functools.cached_property
    def evidence(self) -> Prediction:
        """The prediction with its heat maps and class-activation maps, computed when they are first read."""
        return self._classifier.explained({modality: x[None] for modality, x in self.frames.items()})

    @property
    def heat_map(self) -> Mapping[str, Float[np.ndarray, "t h w"]]:
        """Modality -> motion heat maps in [0, 2]; empty for a network without FRP."""
        return {modality: x[0] for modality, x in self.evidence.heat_map.items()}

    @property
    def class_activation_map(self) -> Mapping[str, Float[np.ndarray, "t h2 w2"]]:
        """Modality -> Grad-CAM of the predicted class, at least 0."""
        return {modality: x[0] for modality, x in self.evidence.class_activation_map.items()}

    def picture(self, size: int = 112) -> UInt8[np.ndarray, "h w 3"]:
        """Draws some of the frames that the network saw, under them Grad-CAM and motion, for each modality.

        Args:
            size: pixels of a frame's sides.
        """
        strips = [drawing.strip(seen, self.evidence, 0, name, size).values() for name, seen in self.frames.items()]
        return drawing.film([row for rows in strips for row in rows], size, gap=4, grey=255)

    def __repr__(self) -> str:
        classes = ", ".join(f"{name} {probability:.1%}" for name, probability in self.top(3))
        return f"ClipPrediction({self.name}: {classes})"


@dataclasses.dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Features of one clip: c numbers for each sampled frame, and for the clip; modality -> features."""

    frames: Mapping[str, Float[np.ndarray, "t c"]]
    clip: Mapping[str, Float[np.ndarray, "c"]]


class Classifier:
    """A trained network; `rgbd_jax.load` returns one. It can be used from several threads.

    Args:
        trained: the network with its weights.
        batch_size: number of clips of a list that are processed together.
    """

    def __init__(self, trained: TrainedModel, *, batch_size: int = 8):
        self.trained = trained
        self.batch_size = batch_size
        self._predictor = functools.cache(functools.partial(Predictor, trained))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes by label."""
        return self.trained.class_names

    @property
    def modalities(self) -> Sequence[str]:
        """The modalities that the network reads: "rgb", "depth" or both."""
        return self.trained.model.modalities

    def predict(
        self, *, rgb: Clip | Sequence[Clip] | None = None, depth: Clip | Sequence[Clip] | None = None
    ) -> ClipPrediction | list[ClipPrediction]:
        """Predicts the class of a clip, or of several.

        Returns:
            The prediction for one clip; for a list of clips, or a path of several, one for each, in order.

        Raises:
            ValueError: a clip cannot be used; names it.
        """
        records, single = self._records({"rgb": rgb, "depth": depth})
        predictor = self._predictor(batch_size=1 if single else min(self.batch_size, len(records)))
        predictions = []
        for start in range(0, len(records), predictor.batch_size):
            chunk = records[start : start + predictor.batch_size]
            clips = [loader.load_clip(record, self.trained.config) for record in chunk]
            batch = {modality: np.stack([clip[modality] for clip in clips]) for modality in self.modalities}
            heads = predictor(batch).heads
            for i, (record, clip) in enumerate(zip(chunk, clips, strict=True)):
                of_clip = {name: logits[i] for name, logits in heads.items()}
                predictions.append(ClipPrediction(record.name, of_clip, self.class_names, record, clip, self))
        return predictions[0] if single else predictions

    def features(
        self, *, rgb: Clip | Sequence[Clip] | None = None, depth: Clip | Sequence[Clip] | None = None
    ) -> ClipFeatures | list[ClipFeatures]:
        """Returns features of a clip, or of several, for retrieval or another classifier.

        Raises:
            ValueError: a clip cannot be used; names it.
        """
        records, single = self._records({"rgb": rgb, "depth": depth})
        names = {modality: self.trained.model.family.features(modality) for modality in self.modalities}
        predictor = self._predictor(batch_size=1, intermediates=tuple(name for pair in names.values() for name in pair))
        features = []
        for record in records:
            frames = loader.load_clip(record, self.trained.config)
            values = predictor({modality: x[None] for modality, x in frames.items()}).intermediates
            of_frames, of_clip = ({m: values[pair[part]][0] for m, pair in names.items()} for part in (0, 1))
            features.append(ClipFeatures(of_frames, of_clip))
        return features[0] if single else features

    def stream(
        self,
        frames: Frames | None = None,
        *,
        rgb: Frames | None = None,
        depth: Frames | None = None,
        hop: int = 15,
        window: int | None = None,
    ) -> Iterator[StreamPrediction]:
        """Yields a prediction for the latest `window` frames, first when there are as many, then every `hop` frames.

        Args:
            frames: the stream of a network that reads one modality.
            rgb: the stream of RGB frames.
            depth: the stream of depth frames.
            hop: frames between predictions.
            window: frames of a prediction; the length of the network's clips by default.

        Raises:
            ValueError: a stream is missing, cannot be read, or has no frame.
        """
        given: dict[str, Frames] = {m: x for m, x in (("rgb", rgb), ("depth", depth)) if x is not None}
        if frames is not None:
            if len(self.modalities) > 1 or given:
                raise ValueError(f"the network reads {' and '.join(self.modalities)}: pass each stream by its name")
            given = {self.modalities[0]: frames}
        self._check_modalities(given)
        readers = {modality: _reader(given[modality], modality) for modality in self.modalities}
        window = self.trained.config.clip.frames if window is None else window
        return stream(self._predictor(batch_size=1), readers, window=window, hop=hop)

    def explained(self, frames: Mapping[str, UInt8[np.ndarray, "n t h w 3"]]) -> Prediction:
        """Returns the prediction for loaded clips with heat maps and class-activation maps."""
        return self._predictor(batch_size=1, explained=True)(frames)

    def _check_modalities(self, given: Mapping[str, Any]) -> None:
        if set(given) != set(self.modalities):
            found = " and ".join(given) or "none"
            raise ValueError(f"the network reads {' and '.join(self.modalities)}; found {found}")

    def _records(self, of_modalities: Mapping[str, Any]) -> tuple[list[ClipRecord], bool]:
        """Returns the clips with all their frames, and whether one clip was given rather than a list."""
        given = {modality: clip for modality, clip in of_modalities.items() if clip is not None}
        self._check_modalities(given)
        single = not any(isinstance(clip, list | tuple) for clip in given.values())
        records = [read_user_clip(clip) for clip in paired({m: _sources(clip, m) for m, clip in given.items()})]
        return records, single and len(records) == 1

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Classifier, batch_size=self.batch_size), (self.trained,)

    def __repr__(self) -> str:
        inputs = " and ".join(self.modalities)
        return f"Classifier({self.trained.path}: {inputs}, {len(self.class_names)} classes)"


def load(path: str | Path, *, config: str | None = None, checkpoint: str = "best") -> Classifier:
    """Loads a trained network.

    Args:
        path: a run, a converted checkpoint, a PyTorch or safetensors file, a registered name, or a URL with a checksum ("https://...#sha256=...").
        config: the experiment's config ("nvgesture:depth"), which a run records and other files do not.
        checkpoint: "best" or "latest" of a run.

    Raises:
        FileNotFoundError: there is no such path or name, or no checkpoint yet.
        ValueError: the checkpoint cannot be fetched or used, or needs a config.
    """
    return Classifier(load_trained(path, checkpoint, load_config(config) if config else None))


def _sources(clip: Clip | Sequence[Clip], modality: str) -> Sequence[Path | np.ndarray]:
    if isinstance(clip, list | tuple):
        return [source for each in clip for source in _sources(each, modality)]
    if isinstance(clip, np.ndarray):
        return [clip]
    return [found.sources[modality] for found in find_clips({modality: [str(clip)]}, [modality])]


def _reader(frames: Frames, modality: str) -> Iterator[bytes] | Iterator[np.ndarray]:
    if isinstance(frames, int | str | Path):
        return encoded_frames(f"{CAMERA}{frames}" if isinstance(frames, int) else str(frames), modality)
    return map(functools.partial(checked_frame, modality=modality), frames)
