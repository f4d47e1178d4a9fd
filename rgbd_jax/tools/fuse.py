"""Score fusion: runs that were evaluated one by one decide together, by a weighted sum of their probabilities.

Probabilities are added, as in the two-stream networks of Simonyan and Zisserman (2014), and not logits or logarithms.
Logits have no common scale: here each is divided by a temperature that depends on the run and its epoch, so that a sum
would mostly follow the sharper run. A sum of logarithms, the product of the probabilities, lets one run that is wrong
and sure overrule all others; sums bear such errors better than products (Kittler et al., "On combining classifiers",
1998), and between zero and one no run can add more than its weight.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from rgbd_jax.metrics import accuracies, softmax
from rgbd_jax.scores import Scores, scores_file

GRIDS = (100, 50, 25, 20, 10, 5, 4, 2, 1)  # parts that 1 is divided into; the finest of at most GRID_POINTS is taken
GRID_POINTS = 1000
FINEST_STEP = 1e-3
ROUNDS = 30  # of refinement


@dataclasses.dataclass(frozen=True)
class Runs:
    """Scores of several runs on the same clips, in the same order.

    Attributes:
        files: the file of each run.
        scores: what was in it.
        names: names of the clips.
        labels: their true classes.
        logits: of each run, clip and class.
    """

    files: tuple[Path, ...]
    scores: tuple[Scores, ...]
    names: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    logits: Float[np.ndarray, "r n k"]

    @property
    def probabilities(self) -> Float[np.ndarray, "r n k"]:
        """Probabilities of each run, clip and class."""
        return softmax(self.logits)


def load_runs(workdirs: Sequence[Path], split: str) -> Runs:
    """Reads the scores of several runs on a split and puts their clips into the order of the first.

    Raises:
        FileNotFoundError: a run was not evaluated on the split.
        ValueError: a file is faulty, or the runs differ in clips, labels or classes; names the files and some clips.
    """
    files = tuple(scores_file(workdir, split) for workdir in workdirs)
    loaded = tuple(_load(workdir, split) for workdir in workdirs)
    first = loaded[0]
    logits = []
    for file, scores in zip(files, loaded, strict=True):
        fault = _disagreement(first, scores)
        if fault:
            raise ValueError(f"{files[0]} and {file} cannot be fused: {fault}")
        place = {name: i for i, name in enumerate(scores.names)}
        logits.append(scores.heads["logits"][[place[name] for name in first.names]].astype(np.float64))
        bad = np.flatnonzero(~np.isfinite(logits[-1]).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{file}: the logits of {_some([first.names[i] for i in bad])} are not finite; the training "
                "diverged, so evaluate an earlier checkpoint or train again"
            )
    return Runs(files, loaded, first.names, first.labels, np.stack(logits))


def fused(probabilities: Float[np.ndarray, "r n k"], weights: Sequence[float]) -> Float[np.ndarray, "n k"]:
    """Returns the weighted sum of the runs' probabilities."""
    return np.tensordot(np.asarray(weights), probabilities, axes=1)


def search_weights(probabilities: Float[np.ndarray, "r n k"], labels: Int[np.ndarray, "n"]) -> tuple[float, ...]:
    """Returns the weights, which sum to 1, that recognise most clips.

    Of weights that recognise equally many, those with the lower cross entropy are taken, and then those nearest to
    equal weights, so that the result depends on the scores alone. All weights on a grid are tried (multiples of 0.01
    for two runs, 0.04 for three, coarser for more), and equal weights; from the best of them weight is then moved from
    run to run, in steps that are halved down to 0.001.

    Args:
        probabilities: of each run, clip and class.
        labels: true classes.
    """
    runs, clips, classes = probabilities.shape
    of_label = np.take_along_axis(probabilities, labels[None, :, None], axis=2)  # r n 1
    lead = probabilities - of_label  # r n k, of each class over the true one
    # A clip that all runs recognise is recognised with all weights, one of which all prefer the same false class, with
    # none: only the others have to be looked at again and again.
    certain = (lead < 0).all(axis=0).sum(axis=1) == classes - 1  # n
    hopeless = (lead > 0).all(axis=0).any(axis=1)  # n
    open_clips = ~(certain | hopeless)
    open_probabilities, open_labels = probabilities[:, open_clips], labels[open_clips]

    def rated(weights: Sequence[float]) -> tuple[float, float, float, tuple[float, ...]]:
        """Returns what the best weights have least of, in the order of importance, and the weights themselves."""
        hits = certain.sum() + np.sum(np.argmax(fused(open_probabilities, weights), axis=1) == open_labels)
        true = np.maximum(fused(of_label, weights), np.finfo(np.float64).tiny)
        distance = sum((weight - 1 / runs) ** 2 for weight in weights)
        # Rounding must not decide between weights that are equally good.
        return float(clips - hits), round(-float(np.mean(np.log(true))), 9), round(distance, 9), tuple(weights)

    parts = next(parts for parts in GRIDS if parts == 1 or math.comb(parts + runs - 1, runs - 1) <= GRID_POINTS)
    best = min(map(rated, [(1 / runs,) * runs, *_grid(parts, runs)]))
    step = 0.5 / parts
    for _ in range(ROUNDS):
        better = min(map(rated, _moved(best[-1], step)), default=best)
        if better < best:
            best = better
        elif step / 2 < FINEST_STEP:
            break
        else:
            step /= 2
    return best[-1]


def fuse(
    workdirs: Sequence[Path], split: str, *, tune_split: str | None = None, weights: Sequence[float] | None = None
) -> dict:
    """Measures runs on a split one by one and together.

    Args:
        workdirs: two runs or more, each with scores of the split (evaluation leaves them there).
        split: the clips to measure.
        tune_split: other clips, on which the weights are found; the runs have to have scores of them too.
        weights: the runs' weights; they are divided by their sum. Equal where neither these nor `tune_split` is given.

    Returns:
        `split`, `tune_split`, `clips`, `weights`, the fused `top1`, `top5` and `mean_per_class`, and `runs`: the same
        figures of each run alone with its `workdir`, `stream`, `step` and `weight`. With `tune_split` also
        `tune_clips` and `tune_top1`.

    Raises:
        FileNotFoundError: a run was not evaluated on a split.
        ValueError: the runs do not fit together, the weights cannot be used, or the weights would be found on clips
            that are reported.
    """
    if len(workdirs) < 2:
        raise ValueError(f"there is {len(workdirs)} run; fusion needs two or more")
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise ValueError(f"a run is given twice in {', '.join(map(str, workdirs))}; give each once")
    if tune_split is not None and weights is not None:
        raise ValueError("weights are either given or found on --tune_split; leave one of the two out")
    if tune_split == split:
        raise ValueError(f"--tune_split={tune_split} is the split that is reported; find the weights on other clips")
    used = _usable(weights, len(workdirs)) if weights is not None else (1 / len(workdirs),) * len(workdirs)
    reported = load_runs(workdirs, split)
    tuned: dict[str, float] = {}
    if tune_split is not None:
        tuning = load_runs(workdirs, tune_split)
        _check_independence(tuning, reported)
        used = search_weights(tuning.probabilities, tuning.labels)
        tuned["tune_clips"] = len(tuning.names)
        tuned["tune_top1"] = accuracies(fused(tuning.probabilities, used), tuning.labels)["top1"]
    return {
        "split": split,
        "tune_split": tune_split,
        **tuned,
        "clips": len(reported.names),
        "weights": list(used),
        **accuracies(fused(reported.probabilities, used), reported.labels),
        "runs": [
            {
                "workdir": str(workdir),
                "modality": scores.modality,
                "step": scores.step,
                "weight": weight,
                **accuracies(probabilities, reported.labels),
            }
            for workdir, scores, weight, probabilities in zip(
                workdirs, reported.scores, used, reported.probabilities, strict=True
            )
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; the last line on stdout is the result as one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m rgbd_jax.evaluate",
        description="Works on the scores of runs that were evaluated with `python -m rgbd_jax.main --mode=eval`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "fuse",
        help="let several runs decide together",
        description="Adds the class probabilities of several runs (RGB and depth, for instance), each with a weight, "
        "and prints how well each run does alone and all do together. Without --tune_split and --weights all runs "
        "have the same weight.",
        epilog="example: python -m rgbd_jax.evaluate fuse runs/demo runs/demo_depth --split 'validation[50%:]' "
        "--tune_split 'validation[:50%]'",
    )
    command.add_argument(
        "workdirs", nargs="+", type=Path, metavar="WORKDIR", help="folder of a run with scores/SPLIT.npz; two or more"
    )
    command.add_argument("--split", default="validation", help="clips to report (default: %(default)s)")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--tune_split", metavar="SPLIT", help="other clips, on which the best weights are looked for")
    choice.add_argument("--weights", metavar="W,W", help="a number from 0 on for each run; divided by their sum")
    options = parser.parse_args(arguments)
    try:
        weights = None if options.weights is None else _parsed(options.weights)
        result = fuse(options.workdirs, options.split, tune_split=options.tune_split, weights=weights)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(result))
    print(json.dumps({"mode": "fuse", **result}))


def table(result: dict) -> str:
    """Returns the result of `fuse` for people: a line for each run and one for all together."""
    together = {**result, "workdir": "fused", "modality": "", "step": "", "weight": sum(result["weights"])}
    lines = [("run", "modality", "step", "weight", "top-1", "top-5", "mean per class", "clips")] + [
        (
            row["workdir"],
            row["modality"],
            str(row["step"]),
            f"{row['weight']:.4f}",
            *(f"{row[name]:.2%}" for name in ("top1", "top5", "mean_per_class")),
            str(result["clips"]),
        )
        for row in (*result["runs"], together)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)  # words to the left, numbers to the right
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _load(workdir: Path, split: str) -> Scores:
    file = scores_file(workdir, split)
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist; make it with `python -m rgbd_jax.main --config CONFIG --workdir {workdir} "
            f"--mode=eval --config.data.eval_split='{split}'`"
        )
    scores = Scores.load(file)
    if scores.split != split:
        raise ValueError(f"{file} holds the scores of split {scores.split!r}; evaluate split {split!r} again")
    return scores


def _disagreement(one: Scores, other: Scores) -> str | None:
    """Says why two runs cannot be fused, None if they can."""
    classes = [scores.heads["logits"].shape[1] for scores in (one, other)]
    if classes[0] != classes[1]:
        return f"one has {classes[0]} classes, the other {classes[1]}"
    for label, names in enumerate(zip(one.class_names, other.class_names, strict=False)):  # as far as they are known
        if names[0] != names[1]:
            return f"class {label} is {names[0]!r} in one and {names[1]!r} in the other"
    only = {"first": set(one.names) - set(other.names), "second": set(other.names) - set(one.names)}
    if any(only.values()):
        return "they are not of the same clips: " + ", and ".join(
            f"the {which} alone has {_some(sorted(names))}" for which, names in only.items() if names
        )
    there = dict(zip(other.names, other.labels.tolist(), strict=True))
    differing = [
        f"{name} ({label} and {there[name]})"
        for name, label in zip(one.names, one.labels.tolist(), strict=True)
        if label != there[name]
    ]
    return f"they disagree on the labels of {_some(differing)}" if differing else None


def _check_independence(tuning: Runs, reported: Runs) -> None:
    """Checks that weights found on some clips say something of others.

    Names of clips are unique within a split of a data set, not over its splits. So a name in two parts of one split is
    the same clip, and a name in two splits is, if the runs say the same of it.
    """
    for file, there, here in zip(tuning.files, tuning.scores, reported.scores, strict=True):
        if there.step != here.step:
            raise ValueError(
                f"{file} is of step {there.step}, but the reported scores of that run are of step {here.step}: "
                "evaluate one checkpoint on both splits"
            )
    place = {name: i for i, name in enumerate(reported.names)}
    shared = np.array([(i, place[name]) for i, name in enumerate(tuning.names) if name in place], int).reshape(-1, 2)
    if not _parts_of(tuning.scores[0].split) & _parts_of(reported.scores[0].split):
        # Rounding is far below, different clips are far above a hundredth of what logits vary by from clip to clip.
        spread = np.std(reported.logits, axis=1).max(axis=1)  # r
        difference = np.abs(tuning.logits[:, shared[:, 0]] - reported.logits[:, shared[:, 1]]).max(axis=2)  # r n
        shared = shared[(difference <= 0.01 * spread[:, None]).all(axis=0)]
    if len(shared):
        which = "are the same clips" if len(shared) == len(tuning.names) == len(reported.names) else "share clips"
        raise ValueError(
            f"{tuning.files[0]} and {reported.files[0]} {which}: {_some([tuning.names[i] for i, _ in shared])}; with "
            "weights found on reported clips the result would look better than it is: give a --tune_split without them"
        )


def _parts_of(split: str) -> set[str]:
    """Returns the splits that TFDS makes this one of: {"train"} for "train[:80%]"."""
    return {part.split("[")[0].strip() for part in split.split("+")}


def _grid(parts: int, runs: int) -> Iterator[tuple[float, ...]]:
    """Gives all weights that are multiples of 1 / parts and sum to 1."""
    for bars in itertools.combinations(range(parts + runs - 1), runs - 1):
        edges = (-1, *bars, parts + runs - 1)
        yield tuple((right - left - 1) / parts for left, right in itertools.pairwise(edges))


def _moved(weights: Sequence[float], step: float) -> Iterator[tuple[float, ...]]:
    """Gives the weights after so much, or all that there is, was moved from one run to another."""
    for giver, taker in itertools.permutations(range(len(weights)), 2):
        amount = min(step, weights[giver])
        if amount > 0:
            moved = list(weights)
            moved[giver] -= amount
            moved[taker] += amount
            yield tuple(moved)


def _parsed(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--weights={text}: expected numbers with commas between, such as 1,1.5") from None


def _usable(weights: Sequence[float], runs: int) -> tuple[float, ...]:
    """Returns weights that sum to 1."""
    if len(weights) != runs or not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
        raise ValueError(
            f"the weights are {list(weights)}; expected {runs} numbers from 0 on, one for each run, not all 0"
        )
    return tuple(weight / sum(weights) for weight in weights)


def _some(clips: Sequence[str]) -> str:
    """Names the first few of many clips."""
    shown = ", ".join(clips[:3]) + (", ..." if len(clips) > 3 else "")
    return f"{len(clips)} clips ({shown})" if len(clips) > 1 else f"clip {shown}"
