"""Reads what exists of a run: config, checkpoint metadata, training curves and scores; missing scores are computed."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rgbd_jax.checkpoint.checkpoints import CheckpointMetadata, find, read_metadata
from rgbd_jax.checkpoint.workdir import CONFIG_FILE, read_config
from rgbd_jax.evaluate import evaluate
from rgbd_jax.pytorch.weights import is_converted
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools.fuse import Runs, load_runs

DEFAULT_SPLIT = "validation"
Curve = tuple[list[int], list[float]]  # steps, values

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Source:
    """What exists of a run; None for what does not.

    Attributes:
        workdir: the run's folder.
        config: the run's config, or the one given for a converted checkpoint.
        which: the checkpoint that the scores are of, "best" or "latest".
        metadata: the metadata of that checkpoint.
        curves: "train" or "validation" -> metric -> its curve.
        runs: the scores of this run and of those to compare it with, on the same clips.
        notes: warnings for the reader.
    """

    workdir: Path
    config: ConfigDict | None
    which: str | None
    metadata: CheckpointMetadata | None
    curves: dict[str, dict[str, Curve]] | None
    runs: Runs
    notes: tuple[str, ...] = ()

    @property
    def scores(self) -> Scores:
        """The scores of this run."""
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
    data_dir: Path | None = None,
) -> Source:
    """Returns what exists of a run; evaluates it, and those to compare it with, if scores are missing.

    Args:
        workdir: a run's folder, a converted checkpoint, or a folder with scores alone.
        split: the clips; None for the evaluation split of the config, or "validation".
        others: folders of runs to compare with.
        config: config of a converted checkpoint; a run has its own.
        data_dir: folder of the prepared data sets, instead of the config's.

    Raises:
        FileNotFoundError: there is no such folder, or neither scores nor a checkpoint to evaluate.
        ValueError: a file is damaged, or the runs have scores of different clips; names the file.
    """
    folders = [workdir, *others]
    resolved = [folder.resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]:
        raise ValueError(f"{twice[0]} is given twice: compare a run with others")
    own = _read_config(workdir, data_dir)
    if own is not None and config is not None:
        raise ValueError(f"{workdir} is a run with its own config: omit --config")
    if config is not None and data_dir is not None:
        config.data.data_dir = str(data_dir)
    config = own or config
    split = split or (config.data.eval_split if config is not None else DEFAULT_SPLIT)
    for folder in folders:
        if not scores_file(folder, split).exists():
            _evaluate(folder, split, config if folder == workdir else _read_config(folder, data_dir) or config)
    runs = load_runs(folders, split)
    if own is None:
        return Source(workdir, config, None if config is None else "best", None, None, runs)
    which, metadata, notes = _checkpoint(workdir, runs.scores[0].step)
    file = workdir / "metrics.jsonl"
    return Source(workdir, own, which, metadata, read_curves(file) if file.is_file() else None, runs, notes)


def read_curves(file: Path) -> dict[str, dict[str, Curve]]:
    """Returns the metrics of a training by kind and name; an incomplete last line is ignored.

    Raises:
        ValueError: a line is damaged; names it.
    """
    curves: dict[str, dict[str, Curve]] = {"train": {}, "validation": {}}
    for number, line in enumerate(file.read_text(errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # a running training is writing it, or was killed while writing
        try:
            metrics = json.loads(line)
            step, kind = int(metrics.pop("step")), metrics.pop("kind")
            for name, value in metrics.items() if kind in curves else ():
                steps, values = curves[kind].setdefault(name, ([], []))
                values.append(float(value))
                steps.append(step)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{file}:{number}: not a line of metrics ({error!r}); expected a JSON object with step and kind: "
                "remove the line"
            ) from error
    return curves


def _read_config(workdir: Path, data_dir: Path | None) -> ConfigDict | None:
    if not (workdir / CONFIG_FILE).is_file():
        return None
    config = read_config(workdir)
    if data_dir is not None:
        config.data.data_dir = str(data_dir)
    return config


def _evaluate(workdir: Path, split: str, config: ConfigDict | None) -> None:
    missing = scores_file(workdir, split)
    if not (workdir / CONFIG_FILE).is_file() and not is_converted(workdir):
        raise FileNotFoundError(
            f"{workdir} has neither scores of split {split!r} ({missing}) nor a checkpoint to evaluate; check the path "
            "and --split"
        )
    if config is None:
        raise ValueError(
            f"{missing} does not exist, and a converted checkpoint does not record its input settings: pass --config, "
            "such as --config configs/nvgesture.py:depth"
        )
    log.info("%s does not exist: evaluating %s on %s first", missing, workdir, split)
    config = config.copy_and_resolve_references()
    config.data.eval_split = split
    evaluate(config, workdir, "best")


def _checkpoint(workdir: Path, step: int) -> tuple[str | None, CheckpointMetadata | None, tuple[str, ...]]:
    """Returns the checkpoint that the scores are of, its metadata, and warnings."""
    try:
        folders = {which: find(workdir, which, evaluated=True) for which in ("latest", "best")}
    except (FileNotFoundError, ValueError) as error:
        return None, None, (f"No checkpoint can be read: {error}.",)
    which = "latest" if folders["best"].name != str(step) == folders["latest"].name else "best"
    metadata = read_metadata(folders[which])
    if folders[which].name == str(step):
        return which, metadata, ()
    return (
        which,
        metadata,
        (
            f"The scores are of step {step}, the best checkpoint is of step {folders[which].name}: evaluate again with "
            "--mode=eval, so that metrics and pictures are of the same weights.",
        ),
    )
