"""What a network saw of some clips, where it looked, and how it weighed frames."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from rgbd_jax.modalities import STREAMS
from rgbd_jax.tools.report.source import Source

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from rgbd_jax.data.source import PreparedSplit
    from rgbd_jax.inference.predictor import Prediction

BRANCHES = ("small", "medium", "large")
PIXELS_TOGETHER = 1 << 20  # of a batch; what a gradient keeps of it has to fit a laptop's memory

log = logging.getLogger("rgbd_jax")


class ClipsMissingError(ValueError):
    """The clips of the scores are not at hand; the message says why."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """One modality of a clip.

    Attributes:
        frames: what the network sees.
        heat: heat maps of the motion, in [0, 2]; None without FRP.
        activation: class-activation maps of the predicted class, from 0 on.
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
    """A clip and what the network made of it.

    Attributes:
        place: which clip of the scores.
        seen: modality -> what is known of it.
        probabilities: of the classes, as this checkpoint gives them for one view of the clip.
    """

    place: int
    seen: Mapping[str, Seen]
    probabilities: Float[np.ndarray, "k"]


def look(source: Source, places: Sequence[int]) -> list[ClipExplanation]:
    """Asks the network about some of the clips that were scored.

    Raises:
        ClipsMissingError: there are no weights, no prepared clips, or others than those that were scored.
    """
    if source.config is None or source.which is None:
        raise ClipsMissingError(
            "there is no checkpoint with its config beside the scores (of a converted one, give --config)"
        )
    from rgbd_jax.data import loader
    from rgbd_jax.inference.predictor import Predictor
    from rgbd_jax.inference.trained import load_trained

    split = _open(source)
    config = source.config.copy_and_resolve_references()
    config.eval.clips = config.eval.crops = 1  # one view of each: that of the middle frames
    records = [split[place] for place in places]
    names = source.scores.names
    for place, record in zip(places, records, strict=True):
        if record.name != names[place]:
            raise ClipsMissingError(
                f"clip {place} of the prepared split is {record.name}, but {names[place]} was scored: the data set is "
                "another one"
            )
    clips = [loader.load_clip(record, config) for record in records]
    is_run = (source.workdir / "config.json").is_file()
    trained = load_trained(source.workdir, source.which, None if is_run else source.config)
    log.info("asking the network of step %d about %d clips", trained.step, len(places))
    pixels = config.clip.frames * config.clip.size**2
    batch_size = int(np.clip(PIXELS_TOGETHER // pixels, 1, len(places)))
    predictor = Predictor(trained, batch_size=batch_size, explained=True, intermediates=_wanted(config))
    found = []
    for start in range(0, len(places), batch_size):
        batch = clips[start : start + batch_size]
        frames = {modality: np.stack([clip[modality] for clip in batch]) for modality in batch[0]}
        said = predictor(frames)
        found += [
            ClipExplanation(places[start + i], _seen(said, clip, i), said.probabilities[i])
            for i, clip in enumerate(batch)
        ]
    return found


def _open(source: Source) -> "PreparedSplit":
    from rgbd_jax.data.source import prepared_directory
    from rgbd_jax.data.splits import open_splits

    assert source.config is not None
    config = source.config.copy_and_resolve_references()
    data = config.data
    if prepared_directory(data.dataset, data.data_dir) is None:
        raise ClipsMissingError(f"the data set {data.dataset} is not prepared in {data.data_dir} on this machine")
    data.raw_dir = ""  # nothing is built for a report
    data.eval_split = source.scores.scores[0].split
    try:
        split = open_splits(config).evaluation
    except (ValueError, OSError) as error:
        raise ClipsMissingError(f"the prepared clips cannot be used: {error}") from error
    if len(split) != len(source.scores.names):
        raise ClipsMissingError(
            f"the prepared split {split.split} has {len(split)} clips, but {len(source.scores.names)} were scored: the "
            "data set is another one"
        )
    return split


def _wanted(config: "ConfigDict") -> list[str]:
    modalities = STREAMS[config.modality]
    prefixes = [f"{modality}/" if len(modalities) > 1 else "" for modality in modalities]
    names = [f"{branch}_attention" for branch in BRANCHES]
    if config.model.recoupling:
        names.append("recoupling_weights")
    return [prefix + name for prefix in prefixes for name in names]


def _seen(said: "Prediction", clip: Mapping[str, np.ndarray], i: int) -> dict[str, Seen]:
    """Returns what is known of clip i of a batch."""
    seen = {}
    for modality, frames in clip.items():
        prefix = f"{modality}/" if len(clip) > 1 else ""
        weights = said.intermediates.get(f"{prefix}recoupling_weights")  # b t c
        attention = {branch: said.intermediates[f"{prefix}{branch}_attention"] for branch in BRANCHES}
        seen[modality] = Seen(
            frames,
            said.heat[modality][i] if said.heat else None,
            said.activation[modality][i],
            None if weights is None else weights[i].astype(np.float32).mean(-1),
            {branch: x[:, i].astype(np.float32).mean((0, 1)) for branch, x in attention.items()},  # from depth b h n n
        )
    return seen
