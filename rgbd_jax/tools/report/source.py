"""Reads what exists of a run: config, checkpoint metadata, training curves and scores; missing scores are computed."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rgbd_jax.checkpoint.checkpoints import CheckpointMetadata, find, read_metadata
from rgbd_jax.checkpoint.workdir import read_config
from rgbd_jax.evaluate import evaluate
from rgbd_jax.pytorch.weights import is_converted, is_workdir
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.tools.fuse import Runs, load_runs

DEFAULT_SPLIT = "validation"
Curve = tuple[list[int], list[float]]  # steps, values

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Source:
    """What exists of a run; None for what does not."""

    workdir: Path
    config: ConfigDict | None  # the run's, or the one given for a converted checkpoint
    which: str | None  # the checkpoint that the scores are of, "best" or "latest"
    metadata: CheckpointMetadata | None  # of that checkpoint
    curves: dict[str, dict[str, Curve]] | None  # "train" or "validation" -> metric -> its curve
    runs: Runs  # the scores of this run and of those to compare it with, on the same clips
    notes: tuple[str, ...] = ()  # warnings for the reader

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
        return Source(workdir, config, None if config is None else "best", None, None, runs)
    file, step = workdir / "metrics.jsonl", str(runs.scores[0].step)
    curves = read_curves(file) if file.is_file() else None
    try:
        latest, best = (find(workdir, which, evaluated=True) for which in ("latest", "best"))
    except (FileNotFoundError, ValueError) as error:
        return Source(workdir, config, None, None, curves, runs, (f"No checkpoint can be read: {error}.",))
    which, checkpoint = ("latest", latest) if best.name != step == latest.name else ("best", best)
    note = (
        f"The scores are of step {step}, the best checkpoint is of step {checkpoint.name}: evaluate again with "
        "--mode=eval, so that metrics and pictures are of the same weights."
    )
    notes = () if checkpoint.name == step else (note,)
    return Source(workdir, config, which, read_metadata(checkpoint), curves, runs, notes)


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
            expected = "expected a JSON object with step and kind: remove the line"
            raise ValueError(f"{file}:{number}: not a line of metrics ({error!r}); {expected}") from error
    return curves


def _evaluate(workdir: Path, split: str, config: ConfigDict | None) -> None:
    missing = scores_file(workdir, split)
    if not is_workdir(workdir) and not is_converted(workdir):
        absent = f"neither scores of split {split!r} ({missing}) nor a checkpoint to evaluate"
        raise FileNotFoundError(f"{workdir} has {absent}; check the path and --split")
    if config is None:
        raise ValueError(
            f"{missing} does not exist, and a converted checkpoint does not record its input settings: pass --config, "
            "such as --config configs/nvgesture.py:depth"
        )
    log.info("%s does not exist: evaluating %s on %s first", missing, workdir, split)
    config = config.copy_and_resolve_references()
    config.data.eval_split = split
    evaluate(config, workdir, "best")
