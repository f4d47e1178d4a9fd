"""What exists of a run: config, metadata, training curves and scores; explanations of some of its predictions.

Missing scores are computed. An explanation is the network's input, its motion heat maps, Grad-CAM, recoupling weights
and attention.
"""

import base64
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from rgbd_jax.checkpoint.checkpoints import CheckpointMetadata, find, read_metadata
from rgbd_jax.checkpoint.metric_writers import read_metrics
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.data import loader
from rgbd_jax.data.source import open_splits
from rgbd_jax.evaluation import evaluate
from rgbd_jax.inference import drawing
from rgbd_jax.inference.predictor import Prediction, Predictor
from rgbd_jax.inference.trained import load_trained
from rgbd_jax.metrics import from_json
from rgbd_jax.pytorch.weights import is_converted, is_workdir
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools.fuse import Runs, load_runs

DEFAULT_SPLIT = "validation"
BATCH_PIXELS = 1 << 20  # the backward pass of a batch has to fit a laptop's memory
SIZE, GAP, GREY = 88, 3, 24  # of a film strip: pixels of a frame and between frames, the background

Curve = tuple[list[int], list[float]]  # steps, values

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Source:
    """What exists of a run; None for what does not."""

    workdir: Path
    config: ConfigDict | None  # the run's, or the one given for a converted checkpoint
    which: str | None  # the checkpoint that the scores are of, "best" or "latest"
    metadata: CheckpointMetadata | None  # of that checkpoint
    curves: dict[str, Curve]  # of the training, such as "train loss" and "validation top1"
    runs: Runs  # the scores of this run and of those to compare it with, on the same clips
    note: str = ""  # a warning for the reader

    @property
    def scores(self) -> Scores:
        return self.runs.scores[0]

    @property
    def steps_per_epoch(self) -> float | None:
        """Training steps of an epoch, from the evaluated epochs of the checkpoint."""
        known = [epoch for epoch in self.metadata.history if epoch.get("epoch")] if self.metadata else []
        return known[-1]["step"] / known[-1]["epoch"] if known else None


def read_source(
    workdir: Path,
    split: str | None = None,
    others: Sequence[Path] = (),
    config: ConfigDict | None = None,
    data_dir: str | Path | None = None,
) -> Source:
    """Returns what exists of a run; evaluates it, and the others to compare it with, if scores are missing.

    The clips are those of `split`, the config's evaluation split, or "validation". `config` is that of a converted
    checkpoint; `data_dir` replaces the config's.

    Raises:
        FileNotFoundError: there is no such folder, or neither scores nor a checkpoint to evaluate.
        ValueError: a file is damaged, or the runs have scores of different clips; names the file.
    """
    folders = [workdir, *others]
    resolved = [folder.resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]:
        raise ValueError(f"{twice[0]} is given twice: compare a run with others")
    is_run = is_workdir(workdir)
    if is_run and config is not None:
        raise ValueError(f"{workdir} is a run with its own config: omit --config")
    configs = [read_config(folder) if is_workdir(folder) else config for folder in folders]
    for each in filter(None, configs) if data_dir is not None else ():
        each.data.data_dir = str(data_dir)
    config = configs[0]
    split = split or (config.data.eval_split if config is not None else DEFAULT_SPLIT)
    for folder, of_folder in zip(folders, configs, strict=True):
        if not scores_file(folder, split).exists():
            _evaluate(folder, split, of_folder or config)
    runs = load_runs(folders, split)
    if not is_run:
        return Source(workdir, config, None if config is None else "best", None, {}, runs)
    curves, step = read_curves(workdir), str(runs.scores[0].step)
    try:
        latest, best = (find(workdir, which, evaluated=True) for which in ("latest", "best"))
    except (FileNotFoundError, ValueError) as error:
        return Source(workdir, config, None, None, curves, runs, f"No checkpoint can be read: {error}.")
    which, checkpoint = ("latest", latest) if best.name != step == latest.name else ("best", best)
    note = (
        f"The scores are of step {step}, the best checkpoint is of step {checkpoint.name}: evaluate again with "
        "--mode=eval, so that metrics and pictures are of the same weights."
    )
    note = "" if checkpoint.name == step else note
    return Source(workdir, config, which, read_metadata(checkpoint), curves, runs, note)


def read_curves(workdir: Path) -> dict[str, Curve]:
    """Returns the metrics of a training, such as "train loss"; errors are those of `read_metrics`."""
    curves: dict[str, Curve] = {}
    for row in map(from_json, read_metrics(workdir)):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = curves.setdefault(f"{row['kind']} {name}", ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _evaluate(workdir: Path, split: str, config: ConfigDict | None) -> None:
    missing = scores_file(workdir, split)
    if not is_workdir(workdir) and not is_converted(workdir):
        absent = f"neither scores of split {split!r} ({missing}) nor a checkpoint to evaluate"
        raise FileNotFoundError(f"{workdir} has {absent}; check the path and --split")
    if config is None:
        advice = "to evaluate a converted checkpoint, pass its config too, such as --config configs/nvgesture.py:depth"
        raise ValueError(f"{missing} does not exist; {advice}")
    log.info("%s does not exist: evaluating %s on %s first", missing, workdir, split)
    config = config.copy_and_resolve_references()
    config.data.eval_split = split
    evaluate(config, workdir, "best")


class ClipsMissingError(ValueError):
    """The clips of the scores cannot be shown; the message explains why."""


@dataclasses.dataclass(frozen=True)
class Explanations:
    """Some of the scored clips, and the predictions of the checkpoint for one view of each, by modality."""

    indices: Sequence[int]  # among the scores
    frames: Mapping[str, UInt8[np.ndarray, "n t h w 3"]]  # the network's input
    prediction: Prediction
    weights: Mapping[str, Mapping[str, Float[np.ndarray, "n t"]]]  # of the frames by title, mean over the channels
    attention: Mapping[str, Mapping[str, Float[np.ndarray, "n tokens tokens"]]]  # by title, mean over layers and heads
    block: str  # of the network, whose output Grad-CAM is of

    def film_strips(self, i: int, modality: str) -> Iterator[tuple[str, str]]:
        """Yields title and picture, as a data URI, of a clip's frames, their Grad-CAM and their motion heat maps."""
        for title, row in drawing.strip(self.frames[modality][i], self.prediction, i, modality, SIZE).items():
            picture = drawing.film([row], SIZE, GAP, GREY)
            encoded = simplejpeg.encode_jpeg(picture, quality=82, colorspace="RGB", colorsubsampling="420")
            yield title, "data:image/jpeg;base64," + base64.b64encode(encoded).decode()


def explain(source: Source, indices: Sequence[int]) -> Explanations:
    """Returns explanations of some of the clips that were scored.

    Raises:
        ClipsMissingError: there are no weights, no prepared clips, or others than those that were scored.
    """
    if source.config is None or source.which is None:
        raise ClipsMissingError(
            "there is no checkpoint with its config beside the scores (for a converted checkpoint, pass --config)"
        )
    config, scored = source.config.copy_and_resolve_references(), source.scores.names
    config.eval.clips = config.eval.crops = 1  # one view: the centre crop of the middle frames
    config.data.eval_split = source.scores.split
    try:
        split = open_splits(config).evaluation
    except (ValueError, OSError) as error:
        raise ClipsMissingError(f"the prepared clips cannot be used: {error}") from error
    records = [split[index] for index in indices] if len(split) == len(scored) else []
    if [record.name for record in records] != [scored[index] for index in indices]:
        others = f"the clips of split {split.split} of {split.directory} are not those of the scores"
        raise ClipsMissingError(f"{others}: they are of another data set, or it was built again")
    try:
        trained = load_trained(source.workdir, source.which, config)
    except ValueError as error:  # such as weights that are NaN: the report of that run is wanted all the more
        raise ClipsMissingError(str(error)) from error
    log.info("explaining %d clips with the checkpoint of step %d", len(indices), trained.step)
    modalities, family = trained.model.modalities, trained.model.family
    weights = {modality: family.frame_weights(config, modality) for modality in modalities}
    attention = {modality: family.attention(modality) for modality in modalities}
    names = [name for titled in (*weights.values(), *attention.values()) for name in titled.values()]
    batch_size = int(np.clip(BATCH_PIXELS // (config.clip.frames * config.clip.size**2), 1, len(indices)))
    clips = [loader.load_clip(record, config) for record in records]
    frames = {modality: np.stack([clip[modality] for clip in clips]) for modality in modalities}
    prediction = Predictor(trained, batch_size=batch_size, explained=True, intermediates=names)(frames)

    def means(titles: Mapping[str, str], axes: int | tuple[int, int]) -> dict[str, np.ndarray]:
        return {title: prediction.intermediates[name].astype(np.float32).mean(axes) for title, name in titles.items()}

    return Explanations(
        indices,
        frames,
        prediction,
        weights={modality: means(titles, -1) for modality, titles in weights.items()},  # of n t c
        attention={modality: means(titles, (1, 2)) for modality, titles in attention.items()},  # of n layers heads ...
        block=family.explained(config, modalities[0]).rpartition("/")[2],
    )
