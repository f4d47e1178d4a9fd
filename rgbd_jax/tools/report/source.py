"""What there is of a run: its config, checkpoint, curves and scores; scores that are missing are made."""

import dataclasses
import logging
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgbd_jax.modalities import STREAMS
from rgbd_jax.scores import scores_file
from rgbd_jax.tools.fuse import Runs, load_runs
from rgbd_jax.tools.report.curves import Curves, read_curves

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from rgbd_jax.checkpoint.checkpoints import CheckpointMetadata

DEFAULT_SPLIT = "validation"

log = logging.getLogger("rgbd_jax")


@dataclasses.dataclass(frozen=True)
class Source:
    """What there is of a run; None where it lacks something.

    Attributes:
        workdir: the run's folder.
        config: the run's config, or the one that was given.
        which: "best" or "latest": the checkpoint that the scores are of, else the best one; None where there is none.
        run: what that checkpoint holds beside the weights.
        curves: figures of the training.
        scores: of this run and of those that it is compared with, on the same clips.
        notes: what a reader has to know, such as that checkpoint and scores do not belong together.
    """

    workdir: Path
    config: "ConfigDict | None"
    which: str | None
    run: "CheckpointMetadata | None"
    curves: Curves | None
    scores: Runs
    notes: tuple[str, ...] = ()


def read_source(
    workdir: Path,
    split: str | None,
    others: Sequence[Path] = (),
    config: "ConfigDict | None" = None,
    data_dir: Path | None = None,
) -> Source:
    """Returns what there is of a run; evaluates it, and those that it is compared with, where scores are missing.

    Args:
        workdir: the run's folder, a converted checkpoint, or a folder with scores alone.
        split: the clips; None takes the evaluation split of the config, else "validation".
        others: folders of runs to compare it with.
        config: config of a converted checkpoint; a run has its own.
        data_dir: where prepared data sets lie, if not where the config says.

    Raises:
        FileNotFoundError: there is no such folder, or neither scores nor a checkpoint to evaluate.
        ValueError: a file is damaged, or the runs are not of the same clips; names the file.
    """
    _check_folders([workdir, *others])
    own = _config_of(workdir, data_dir)
    if own is not None and config is not None:
        raise ValueError(f"{workdir} is a run with a config of its own: leave --config out")
    if config is not None and data_dir is not None:
        config.data.data_dir = str(data_dir)
    config = own or config
    split = split or (config.data.eval_split if config is not None else DEFAULT_SPLIT)
    for folder in (workdir, *others):
        if not scores_file(folder, split).exists():
            _evaluate(folder, split, config if folder == workdir else _config_of(folder, data_dir) or config)
    scores = load_runs([workdir, *others], split)
    run = which = curves = None
    notes: list[str] = []
    if own is not None:
        which, run, notes = _checkpoint(workdir, own, scores.scores[0].step)
        curves = read_curves(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").is_file() else None
    elif config is not None:
        which = "best"
    return Source(workdir, config, which, run, curves, scores, tuple(notes))


def read_config_file(given: str) -> "ConfigDict":
    """Returns the config of a file, with the stream after a colon ("configs/nvgesture.py:depth").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no config, or the stream is not known.
    """
    name, _, stream = given.partition(":")
    if not Path(name).is_file():
        raise FileNotFoundError(f"--config={given}: there is no file {name}")
    if stream and stream not in STREAMS:
        raise ValueError(f"--config={given}: the stream is {stream!r}, expected one of {', '.join(STREAMS)}")
    try:
        return runpy.run_path(name)["get_config"](*([stream] if stream else []))
    except Exception as error:
        raise ValueError(
            f"--config={given}: {name} gives no config ({error!r}); expected a file of configs/"
        ) from error


def _check_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not folder.exists():
            raise FileNotFoundError(f"{folder} does not exist; expected the folder of a run")
        if not folder.is_dir():
            raise ValueError(f"{folder} is a file; expected the folder of a run (python -m rgbd_jax.pytorch makes one)")
    known = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, known, strict=True):
        if known.count(place) > 1:
            raise ValueError(f"{folder} is given twice: compare a run with others")


def _config_of(workdir: Path, data_dir: Path | None) -> "ConfigDict | None":
    if not (workdir / "config.json").is_file():
        return None
    from rgbd_jax.checkpoint.workdir import read_config

    config = read_config(workdir)
    if data_dir is not None:
        config.data.data_dir = str(data_dir)
    return config


def _evaluate(workdir: Path, split: str, config: "ConfigDict | None") -> None:
    """Makes the scores of a split."""
    missing = scores_file(workdir, split)
    from rgbd_jax.pytorch.weights import is_converted

    if not (workdir / "config.json").is_file() and not is_converted(workdir):
        raise FileNotFoundError(
            f"{workdir} has neither scores of split {split!r} ({missing}) nor a run or checkpoint to evaluate; "
            "check the path and --split"
        )
    if config is None:
        raise ValueError(
            f"{missing} does not exist, and a converted checkpoint does not say how to make it: give --config, such as "
            "--config configs/nvgesture.py:depth"
        )
    from rgbd_jax.evaluate import evaluate

    log.info("%s does not exist: evaluating %s on %s first", missing, workdir, split)
    config = config.copy_and_resolve_references()
    config.data.eval_split = split
    evaluate(config, workdir, "best")


def _checkpoint(workdir: Path, config: "ConfigDict", step: int) -> tuple[str | None, Any, list[str]]:
    """Returns which checkpoint the scores are of, what it holds beside the weights, and notes for the reader."""
    from rgbd_jax.checkpoint.checkpoints import find, read_metadata

    try:
        folders = {which: find(workdir, which, evaluated=True) for which in ("latest", "best")}
    except (FileNotFoundError, ValueError) as error:
        return None, None, [f"No checkpoint can be read: {error}."]
    which = "latest" if folders["best"].name != str(step) == folders["latest"].name else "best"
    run, notes = read_metadata(folders[which]), []
    if folders[which].name != str(step):
        notes.append(
            f"The scores are of step {step}, the best checkpoint is of step {folders[which].name}: evaluate again with "
            "python -m rgbd_jax.main --mode=eval, so that figures and pictures are of the same weights."
        )
    return which, run, notes
