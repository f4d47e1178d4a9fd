"""Explanations of single predictions: frames, motion heat maps, Grad-CAM, recoupling weights and attention."""

import base64
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax.data import loader
from rgbd_jax.data.source import ClipRecord, prepared_directory
from rgbd_jax.data.splits import open_splits
from rgbd_jax.inference import drawing
from rgbd_jax.inference.predictor import Prediction, Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.tools.report.source import Source

BRANCHES = ("small", "medium", "large")
BATCH_PIXELS = 1 << 20  # the backward pass of a batch has to fit a laptop's memory
STRIP_FRAMES, SIZE, GAP, GREY = 8, 88, 3, 24  # frames of a film strip, their pixels, and what is between them

log = logging.getLogger("rgbd_jax")


class ClipsMissingError(ValueError):
    """The clips of the scores cannot be shown; the message says why."""


@dataclasses.dataclass(frozen=True)
class ModalityExplanation:
    """One modality of a clip.

    Attributes:
        frames: the network's input.
        heat: motion heat maps, in [0, 2]; None without FRP.
        activation: class-activation maps (Grad-CAM) of the predicted class, at least 0.
        weights: recoupling weights, mean over the channels; None without recoupling.
        attention: branch -> attention, mean over layers and heads; row and column 0 are the class token.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    heat: Float[np.ndarray, "t h w"] | None
    activation: Float[np.ndarray, "t h2 w2"]
    weights: Float[np.ndarray, "t"] | None
    attention: Mapping[str, Float[np.ndarray, "n n"]]


@dataclasses.dataclass(frozen=True)
class ClipExplanation:
    """A clip and the prediction of the checkpoint for one view of it.

    Attributes:
        index: of the clip among the scores.
        modalities: modality -> its explanation.
        probabilities: of the classes.
    """

    index: int
    modalities: Mapping[str, ModalityExplanation]
    probabilities: Float[np.ndarray, "k"]


def explain(source: Source, indices: Sequence[int]) -> list[ClipExplanation]:
    """Returns explanations of some of the clips that were scored.

    Raises:
        ClipsMissingError: there are no weights, no prepared clips, or others than those that were scored.
    """
    if source.config is None or source.which is None:
        raise ClipsMissingError(
            "there is no checkpoint with its config beside the scores (for a converted checkpoint, pass --config)"
        )
    records = _records(source, source.config.copy_and_resolve_references(), indices)
    config = source.config.copy_and_resolve_references()
    config.eval.clips = config.eval.crops = 1  # one view: the centre crop of the middle frames
    is_run = (source.workdir / "config.json").is_file()
    trained = load_trained(source.workdir, source.which, None if is_run else source.config)
    batch_size = int(np.clip(BATCH_PIXELS // (config.clip.frames * config.clip.size**2), 1, len(indices)))
    # A network of several modalities names its intermediate values `MODALITY/NAME`.
    modalities = trained.model.modalities
    prefixes = {modality: f"{modality}/" if len(modalities) > 1 else "" for modality in modalities}
    names = [f"{branch}_attention" for branch in BRANCHES] + ["recoupling_weights"] * config.model.recoupling
    intermediates = [prefix + name for prefix in prefixes.values() for name in names]
    predictor = Predictor(trained, batch_size=batch_size, explained=True, intermediates=intermediates)
    log.info("explaining %d clips with the checkpoint of step %d", len(indices), trained.step)
    explanations = []
    for start in range(0, len(indices), batch_size):
        clips = [loader.load_clip(record, config) for record in records[start : start + batch_size]]
        prediction = predictor({modality: np.stack([clip[modality] for clip in clips]) for modality in prefixes})
        for i, clip in enumerate(clips):
            parts = {name: _explanation(prediction, clip[name], name, prefix, i) for name, prefix in prefixes.items()}
            explanations.append(ClipExplanation(indices[start + i], parts, prediction.probabilities[i]))
    return explanations


def _records(source: Source, config: ConfigDict, indices: Sequence[int]) -> list[ClipRecord]:
    data = config.data
    if prepared_directory(data.dataset, data.data_dir) is None:
        raise ClipsMissingError(f"the data set {data.dataset} is not prepared in {data.data_dir} on this machine")
    data.raw_dir = ""  # a report builds no data set
    data.eval_split = source.scores.split
    try:
        split = open_splits(config).evaluation
    except (ValueError, OSError) as error:
        raise ClipsMissingError(f"the prepared clips cannot be used: {error}") from error
    names = source.scores.names
    records = [split[index] for index in indices] if len(split) == len(names) else []
    if [record.name for record in records] != [names[index] for index in indices]:
        raise ClipsMissingError(
            f"the clips of split {split.split} of {split.directory} are not those of the scores: they are of another "
            "data set, or it was built again"
        )
    return records


def _explanation(
    prediction: Prediction, frames: UInt8[np.ndarray, "t h w 3"], modality: str, prefix: str, i: int
) -> ModalityExplanation:
    weights = prediction.intermediates.get(f"{prefix}recoupling_weights")  # b t c
    attention = {branch: prediction.intermediates[f"{prefix}{branch}_attention"] for branch in BRANCHES}  # l b h n n
    return ModalityExplanation(
        frames,
        prediction.heat_map[modality][i] if prediction.heat_map else None,
        prediction.class_activation_map[modality][i],
        None if weights is None else weights[i].astype(np.float32).mean(-1),
        {branch: x[:, i].astype(np.float32).mean((0, 1)) for branch, x in attention.items()},
    )


def strip_frames(count: int) -> list[int]:
    """Returns which of `count` frames a film strip shows: the middle ones of equal parts."""
    shown = min(STRIP_FRAMES, count)
    return [(2 * part + 1) * count // (2 * shown) for part in range(shown)]


def film_strip(explanation: ModalityExplanation) -> Iterator[tuple[str, str]]:
    """Yields title and picture, as a data URI, of the frames, their motion heat maps and their Grad-CAM."""
    shown = strip_frames(len(explanation.frames))
    frames = [explanation.frames[i] for i in shown]
    yield "", _jpeg(frames)
    if explanation.heat is not None:
        yield "motion", _jpeg([drawing.heat_picture(explanation.heat[i]) for i in shown])
    activation = drawing.relative(explanation.activation)
    small = [drawing.resized(frame, (SIZE, SIZE)) for frame in frames]
    yield "Grad-CAM", _jpeg([drawing.tinted(frame, activation[i]) for frame, i in zip(small, shown, strict=True)])


def _jpeg(frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> str:
    picture = drawing.film([frames], SIZE, GAP, GREY)
    encoded = simplejpeg.encode_jpeg(picture, quality=82, colorspace="RGB", colorsubsampling="420")
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
