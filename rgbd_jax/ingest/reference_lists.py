"""Split lists in the reference's format, where its users keep them: `RAW/dataset_splits`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rgbd_jax.ingest.discovery import Candidate, without_duplicates
from rgbd_jax.ingest.problems import Problem, RawDataError, in_split, line_problem
from rgbd_jax.ingest.splits import SplitLine, find_split_lists, read_split_list

LISTS_FOLDER = "dataset_splits"


def find_lists(folder: Path, modalities: Sequence[str]) -> list[Path]:
    """Returns the folders that hold split lists: `folder` itself or, if it has none, one for each modality.

    Args:
        folder: where lists may lie.
        modalities: those of the data set, "rgb" and "depth".

    Returns:
        `folder`, those of its folders named as the modalities that hold lists, or nothing if there are no lists.
    """
    if find_split_lists(folder):
        return [folder]
    return [lists for modality in modalities if find_split_lists(lists := folder / modality)]


def read_lists(
    folders: Sequence[Path], num_classes: int, name_of: Callable[[str], str], problems: list[Problem]
) -> dict[str, list[Candidate]]:
    """Reads split lists.

    Args:
        folders: as `find_lists` returns them; where there are several, all must hold the same clips.
        num_classes: labels must lie below it.
        name_of: gives the clip that a path of a list stands for, the same for all modalities; raises ValueError, saying
            what was expected, for a path that stands for none.
        problems: what is wrong with single lines is added here.

    Returns:
        Split ("train", "validation", "test") to its clips, in the order of the first folder's lists.

    Raises:
        RawDataError: a list cannot be read, or the folders do not hold the same clips.
    """
    first, *others = (
        {split: read_split_list(file, num_classes) for split, file in find_split_lists(folder).items()}
        for folder in folders
    )
    candidates: dict[str, list[Candidate]] = {}
    for split, (lines, faults) in first.items():
        candidates[split] = without_duplicates(_candidates(lines, name_of, faults), faults)
        problems += in_split(split, faults)
    for folder, other in zip(folders[1:], others, strict=True):
        found = {split: _candidates(lines, name_of, []) for split, (lines, _) in other.items()}
        expected = {split: _candidates(lines, name_of, []) for split, (lines, _) in first.items()}
        _check_agreement(folders[0], expected, folder, found)
    return candidates


def _candidates(lines: Sequence[SplitLine], name_of: Callable[[str], str], problems: list[Problem]) -> list[Candidate]:
    candidates = []
    for line in lines:
        try:
            candidates.append(Candidate(name_of(line.path), line.label, line.frame_count, line.where))
        except ValueError as error:
            problems.append(line_problem(line.where, error))
    return candidates


def _check_agreement(
    folder: Path, expected: dict[str, list[Candidate]], other_folder: Path, found: dict[str, list[Candidate]]
) -> None:
    """Makes sure that the lists of two modalities hold the same clips, in whatever order."""
    if found.keys() != expected.keys():
        what = f"expected lists of {' and '.join(expected)} as in {folder}, found {' and '.join(found)}"
        raise RawDataError([Problem(str(other_folder), what, one_clip=False)])
    problems = []
    for split in expected:
        mine, theirs = _by_content(expected[split]), _by_content(found[split])
        for lines, others, place in ((mine, theirs, other_folder), (theirs, mine, folder)):
            unmatched = [lines[content] for content in lines if content not in others]
            problems += [Problem(where, f"no such line in {place}", one_clip=False) for where in unmatched]
    if problems:
        raise RawDataError(problems)


def _by_content(candidates: Sequence[Candidate]) -> dict[tuple[str, int, int | None], str]:
    return {(candidate.name, candidate.label, candidate.frame_count): candidate.where for candidate in candidates}
