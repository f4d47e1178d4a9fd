"""Late (score-level) fusion: a weighted sum of the class probabilities of several evaluated runs.

    python -m rgbd_jax fuse runs/demo runs/demo_depth --split 'validation[50%:]' --tune_split 'validation[:50%]'

Probabilities are summed, as in the two-stream networks of Simonyan and Zisserman (2014), not logits or logarithms.
Logits have no common scale: each is divided by a temperature that depends on the run and its epoch, so that a sum would
mostly follow the sharper run. A sum of logarithms lets one run that is confidently wrong overrule all others; sums of
probabilities are more robust to such errors (Kittler et al., "On combining classifiers", 1998).
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from rgbd_jax.metrics import accuracies, softmax
from rgbd_jax.scores import Scores, scores_file
from rgbd_jax.storage import as_path

GRIDS = (1000, 40, 15, 10, 5, 2, 1)  # steps from weight 0 to 1: the finest grid of at most GRID_POINTS is searched
GRID_POINTS = 1001


@dataclasses.dataclass(frozen=True)
class Runs:
    """Scores of several runs on the same clips."""

    files: tuple[Path, ...]
    scores: tuple[Scores, ...]
    names: tuple[str, ...]  # of the clips, in the order of the first run, as the labels and logits
    labels: Int[np.ndarray, "n"]
    logits: Float[np.ndarray, "r n k"]

    @property
    def probabilities(self) -> Float[np.ndarray, "r n k"]:
        return softmax(self.logits)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m rgbd_jax fuse`."""
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="two or more evaluated runs")
    parser.add_argument("--split", default="validation", help="clips to report (default: %(default)s)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--tune_split", metavar="SPLIT", help="other clips, on which the weights are tuned")
    choice.add_argument("--weights", metavar="W,W", help="a weight of at least 0 for each run (default: equal ones)")


def run(args: argparse.Namespace) -> None:
    """Fuses runs; the last line on stdout is the result as one JSON object."""
    try:
        weights = [float(number) for number in args.weights.split(",")] if args.weights else None
    except ValueError:
        raise ValueError(f"--weights={args.weights}: expected numbers separated by commas, such as 1,1.5") from None
    workdirs = [as_path(workdir) for workdir in args.workdirs]
    result = fuse(workdirs, args.split, tune_split=args.tune_split, weights=weights)
    print(table(result))
    print(json.dumps({"mode": "fuse", **result}))


def fuse(
    workdirs: Sequence[Path], split: str, *, tune_split: str | None = None, weights: Sequence[float] | None = None
) -> dict:
    """Measures two runs or more on a split, each alone and all fused; JSON-able.

    The weights are those found on `tune_split`, without it `weights` (normalised here), without both equal ones.

    Raises:
        FileNotFoundError: a run was not evaluated on a split.
        ValueError: the runs do not fit together, the weights cannot be used, or the splits share clips.
    """
    if len(workdirs) < 2:
        raise ValueError(f"{len(workdirs)} run is given; fusion needs two or more")
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise ValueError(f"a run is given twice in {', '.join(map(str, workdirs))}; give each once")
    weights = [1.0] * len(workdirs) if weights is None else weights
    if len(weights) != len(workdirs) or not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0:
        raise ValueError(f"the weights are {list(weights)}; expected {len(workdirs)} numbers >= 0, not all of them 0")
    weights = [weight / sum(weights) for weight in weights]
    reported, tuned = load_runs(workdirs, split), {}
    if tune_split is not None:
        tuning = load_runs(workdirs, tune_split)
        _check_independence(tuning, reported)
        weights = list(search_weights(tuning.probabilities, tuning.labels))
        top1 = accuracies(fused(tuning.probabilities, weights), tuning.labels)["top1"]
        tuned = {"tune_clips": len(tuning.names), "tune_top1": top1}
    runs = []
    for i, workdir in enumerate(workdirs):
        run = {"workdir": str(workdir), "modality": reported.scores[i].modality, "step": reported.scores[i].step}
        runs.append(run | {"weight": weights[i]} | accuracies(reported.probabilities[i], reported.labels))
    result = {"split": split, "tune_split": tune_split, **tuned, "clips": len(reported.names), "weights": weights}
    return result | accuracies(fused(reported.probabilities, weights), reported.labels) | {"runs": runs}


def load_runs(workdirs: Sequence[Path], split: str) -> Runs:
    """Reads the scores of several runs on a split and orders their clips as the first run's.

    Raises:
        FileNotFoundError: a run was not evaluated on the split.
        ValueError: a file is faulty, or the runs differ in clips, labels or classes; names the files and some clips.
    """
    files = tuple(scores_file(workdir, split) for workdir in workdirs)
    loaded: list[Scores] = []
    logits: list[Float[np.ndarray, "n k"]] = []
    for file, workdir in zip(files, workdirs, strict=True):
        if not file.exists():
            command = f"python -m rgbd_jax.main --config CONFIG --workdir {workdir} --mode=eval"
            advice = f"write it with `{command} --config.data.eval_split='{split}'`"
            raise FileNotFoundError(f"{file} does not exist; {advice}")
        loaded.append(scores := Scores.load(file))
        if scores.split != split:
            raise ValueError(f"{file} holds the scores of split {scores.split!r}; evaluate split {split!r} again")
        if mismatch := _mismatch(loaded[0], scores):
            raise ValueError(f"{files[0]} and {file} cannot be fused: {mismatch}")
        index = {name: i for i, name in enumerate(scores.names)}
        logits.append(scores.heads["logits"][[index[name] for name in loaded[0].names]].astype(np.float64))
        if bad := [loaded[0].names[i] for i in np.flatnonzero(~np.isfinite(logits[-1]).all(axis=1))]:
            advice = "the training diverged, so evaluate an earlier checkpoint or train again"
            raise ValueError(f"{file}: the logits of {_some(bad)} are not finite; {advice}")
    return Runs(files, tuple(loaded), loaded[0].names, loaded[0].labels, np.stack(logits))


def fused(probabilities: Float[np.ndarray, "r n k"], weights: Sequence[float]) -> Float[np.ndarray, "n k"]:
    """Returns the weighted sum of the runs' probabilities."""
    return np.tensordot(np.asarray(weights), probabilities, axes=1)


def search_weights(probabilities: Float[np.ndarray, "r n k"], labels: Int[np.ndarray, "n"]) -> tuple[float, ...]:
    """Returns the weights, which sum to 1, with the highest top-1 accuracy, by grid search.

    The grid has steps of 0.001 for two runs, 0.025 for three and coarser ones for more. Ties are broken by the lower
    cross entropy, then by the smaller distance from equal weights.
    """
    runs = len(probabilities)
    of_label = np.take_along_axis(probabilities, labels[None, :, None], axis=2)  # r n 1
    predicted = probabilities.argmax(axis=2)  # r n
    disputed = (predicted != predicted[0]).any(axis=0)  # n; where all runs agree, the weights decide nothing
    disputed_probabilities, disputed_labels = probabilities[:, disputed], labels[disputed]

    def rank(weights: Sequence[float]) -> tuple[float, float, float, tuple[float, ...]]:
        hits = np.sum(np.argmax(fused(disputed_probabilities, weights), axis=1) == disputed_labels)
        true = np.maximum(fused(of_label, weights), np.finfo(np.float64).tiny)
        distance = sum((weight - 1 / runs) ** 2 for weight in weights)
        # Rounding must not decide between weights that are equally good.
        return -float(hits), round(-float(np.mean(np.log(true))), 9), round(distance, 9), tuple(weights)

    steps = next((n for n in GRIDS if math.comb(n + runs - 1, runs - 1) <= GRID_POINTS), 1)
    shares = itertools.combinations_with_replacement(range(runs), steps)  # the run that gets each step of the weight
    grid = [(np.bincount(share, minlength=runs) / steps).tolist() for share in shares]
    return min(map(rank, [[1 / runs] * runs, *grid]))[-1]


def table(result: dict) -> str:
    """Returns the result of `fuse` as a table: a line for each run and one for all fused."""
    total = {**result, "workdir": "fused", "modality": "", "step": "", "weight": sum(result["weights"])}
    rows = [*result["runs"], total]
    width = max(len(row["workdir"]) for row in rows)
    lines = [f"{'run':{width}}  modality     step  weight    top-1    top-5  mean per class  clips"]
    for row in rows:
        run = f"{row['workdir']:{width}}  {row['modality']:8}  {row['step']:>7}  {row['weight']:6.4f}"
        metrics = f"{row['top1']:7.2%}  {row['top5']:7.2%}  {row['mean_per_class']:14.2%}"
        lines.append(f"{run}  {metrics}  {result['clips']:5}")
    return "\n".join(lines)


def _mismatch(one: Scores, other: Scores) -> str | None:
    """Returns why two runs cannot be fused, None if they can."""
    classes = [scores.heads["logits"].shape[1] for scores in (one, other)]
    if classes[0] != classes[1]:
        return f"one has {classes[0]} classes, the other {classes[1]}"
    for label, names in enumerate(zip(one.class_names, other.class_names, strict=False)):  # as far as both are known
        if names[0] != names[1]:
            return f"class {label} is {names[0]!r} in one and {names[1]!r} in the other"
    first, second = (dict(zip(scores.names, scores.labels.tolist(), strict=True)) for scores in (one, other))
    only = {"first": sorted(first.keys() - second), "second": sorted(second.keys() - first)}
    if alone := [f"the {which} alone has {_some(names)}" for which, names in only.items() if names]:
        return f"they are not of the same clips: {', and '.join(alone)}"
    differing = [f"{name} ({label} and {second[name]})" for name, label in first.items() if label != second[name]]
    return f"they disagree on the labels of {_some(differing)}" if differing else None


def _check_independence(tuning: Runs, reported: Runs) -> None:
    for file, tuned, scores in zip(tuning.files, tuning.scores, reported.scores, strict=True):
        if tuned.step != scores.step:
            raise ValueError(
                f"{file} is of step {tuned.step}, but the reported scores of that run are of step {scores.step}: "
                "evaluate one checkpoint on both splits"
            )
    # TFDS makes "train[:80%]+test" of "train" and "test", within which, but not over both, names of clips are unique.
    bases = [{part.split("[")[0].strip() for part in runs.scores[0].split.split("+")} for runs in (tuning, reported)]
    reported_names = set() if bases[0].isdisjoint(bases[1]) else set(reported.names)
    if shared := [name for name in tuning.names if name in reported_names]:
        raise ValueError(
            f"{tuning.files[0]} and {reported.files[0]} share clips: {_some(shared)}; "
            "tuned on reported clips the result would look better than it is: give a --tune_split without them"
        )


def _some(clips: Sequence[str]) -> str:
    shown = ", ".join(clips[:3]) + (", ..." if len(clips) > 3 else "")
    return f"{len(clips)} clips ({shown})" if len(clips) > 1 else f"clip {shown}"
