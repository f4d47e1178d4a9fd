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
from rgbd_jax.data.source import ClipRecord, open_splits, prepared_directory
from rgbd_jax.inference import drawing
from rgbd_jax.inference.predictor import Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.pytorch.weights import is_workdir
from rgbd_jax.tools.report.source import Source

BATCH_PIXELS = 1 << 20  # the backward pass of a batch has to fit a laptop's memory
SIZE, GAP, GREY = 88, 3, 24  # of a film strip: pixels of a frame and between frames, the background

log = logging.getLogger("rgbd_jax")


class ClipsMissingError(ValueError):
    """The clips of the scores cannot be shown; the message explains why."""


@dataclasses.dataclass(frozen=True)
class ModalityExplanation:
    """One modality of a clip."""

    frames: UInt8[np.ndarray, "t h w 3"]  # the network's input
    heat: Float[np.ndarray, "t h w"] | None  # motion heat maps, in [0, 2]; None without FRP
    activation: Float[np.ndarray, "t h2 w2"]  # class-activation maps (Grad-CAM) of the predicted class, at least 0
    weights: Mapping[str, Float[np.ndarray, "t"]]  # title -> weights of the frames, mean over the channels
    attention: Mapping[str, Float[np.ndarray, "n n"]]  # title -> mean over layers and heads, the class token first

    def film_strip(self) -> Iterator[tuple[str, str]]:
        """Yields title and picture, as a data URI, of the frames, their Grad-CAM and their motion heat maps."""
        for title, row in drawing.strip(self.frames, self.activation, self.heat, SIZE).items():
            picture = drawing.film([row], SIZE, GAP, GREY)
            encoded = simplejpeg.encode_jpeg(picture, quality=82, colorspace="RGB", colorsubsampling="420")
            yield title, "data:image/jpeg;base64," + base64.b64encode(encoded).decode()


@dataclasses.dataclass(frozen=True)
class ClipExplanation:
    """A clip, by its index among the scores, and the prediction of the checkpoint for one view of it."""

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
    config = source.config.copy_and_resolve_references()
    config.eval.clips = config.eval.crops = 1  # one view: the centre crop of the middle frames
    records = _records(source, config, indices)
    trained = load_trained(source.workdir, source.which, None if is_workdir(source.workdir) else source.config)
    modalities, family = trained.model.modalities, trained.model.family
    weights = {modality: family.frame_weights(config, modality) for modality in modalities}
    attention = {modality: family.attention(modality) for modality in modalities}
    intermediates = [name for names in (*weights.values(), *attention.values()) for name in names.values()]
    batch_size = int(np.clip(BATCH_PIXELS // (config.clip.frames * config.clip.size**2), 1, len(indices)))
    predictor = Predictor(trained, batch_size=batch_size, explained=True, intermediates=intermediates)
    log.info("explaining %d clips with the checkpoint of step %d", len(indices), trained.step)
    explanations = []
    for start in range(0, len(indices), batch_size):
        clips = [loader.load_clip(record, config) for record in records[start : start + batch_size]]
        prediction = predictor({modality: np.stack([clip[modality] for clip in clips]) for modality in modalities})
        values = {name: x.astype(np.float32) for name, x in prediction.intermediates.items()}
        for i, clip in enumerate(clips):
            parts = {
                modality: ModalityExplanation(
                    frames=clip[modality],
                    heat=prediction.heat_map[modality][i] if prediction.heat_map else None,
                    activation=prediction.class_activation_map[modality][i],
                    weights={title: values[name][i].mean(-1) for title, name in weights[modality].items()},
                    attention={title: values[name][:, i].mean((0, 1)) for title, name in attention[modality].items()},
                )
                for modality in modalities
            }
            explanations.append(ClipExplanation(indices[start + i], parts, prediction.probabilities[i]))
    return explanations


def _records(source: Source, config: ConfigDict, indices: Sequence[int]) -> list[ClipRecord]:
    data = config.data
    if prepared_directory(data.dataset, data.data_dir) is None:
        raise ClipsMissingError(f"the data set {data.dataset} is not prepared in {data.data_dir} on this machine")
    data.eval_split = source.scores.split
    try:
        split = open_splits(config).evaluation
    except (ValueError, OSError) as error:
        raise ClipsMissingError(f"the prepared clips cannot be used: {error}") from error
    names = source.scores.names
    records = [split[index] for index in indices] if len(split) == len(names) else []
    if [record.name for record in records] != [names[index] for index in indices]:
        others = f"the clips of split {split.split} of {split.directory} are not those of the scores"
        raise ClipsMissingError(f"{others}: they are of another data set, or it was built again")
    return records
