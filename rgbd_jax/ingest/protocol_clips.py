"""The clips of data sets with several protocols: which there are, and which split of which protocol has them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from absl import logging

from rgbd_jax.data.protocols import ProtocolSplit, to_base_splits, to_metadata
from rgbd_jax.ingest.clip_files import Recording
from rgbd_jax.ingest.discovery import Candidate, RawClip, RawClips, check_clips
from rgbd_jax.ingest.problems import Problem, RawDataError
from rgbd_jax.ingest.reference_lists import LISTS_FOLDER, find_lists, read_lists


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to cut a data set into training and evaluation.

    Attributes:
        name: such as "cs"; its splits are "cs_train" and "cs_validation".
        lists: names that the folder of its split lists may have.
        num_classes: number of classes: the first ones of the data set.
        split_of: the rule: name of a clip to "train" or "validation", None for a clip that the protocol has not.
        needs: the rule is meant for data sets that have a clip for which this holds.
        sizes: split to its number of clips in the whole data set, where that is known.
    """

    name: str
    lists: tuple[str, ...]
    num_classes: int
    split_of: Callable[[str], str | None]
    needs: Callable[[str], bool] = lambda name: True
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ClipFinder:
    """What is particular to a data set.

    Attributes:
        modalities: those that the raw data has.
        class_names: the classes, by label.
        name_of: gives the clip that a path of a split list stands for; raises ValueError for none.
        label_of: gives the label that a clip's name says; raises ValueError for a name that says none.
        on_disk: name of every clip on disk to where it lies.
        locate: says where the frames of a clip lie, as `check_clips` wants it.
    """

    modalities: tuple[str, ...]
    class_names: Sequence[str]
    name_of: Callable[[str], str]
    label_of: Callable[[str], int]
    on_disk: Mapping[str, Path]
    locate: Callable[[Candidate], Mapping[str, Recording]]


def find_protocol_clips(
    raw_dir: Path, finder: ClipFinder, protocols: Sequence[Protocol], problems: list[Problem]
) -> RawClips:
    """Finds and checks the clips of all protocols.

    Where there are split lists, they say which clips there are, how many frames are used, and which split has them;
    protocols without lists follow their rule over these clips. Without any lists the clips are those on disk.

    Args:
        raw_dir: where the raw data lies; lists lie in `dataset_splits/FOLDER` there, one folder a protocol.
        finder: what is particular to the data set.
        protocols: the protocols.
        problems: what is wrong already.

    Returns:
        The clips in base splits, with the protocols as metadata.

    Raises:
        RawDataError: the lists cannot be used, or there are no clips.
    """
    problems = list(problems)
    listed = _read_all_lists(raw_dir, finder, protocols, problems)
    if listed:
        candidates = _merge(listed, problems)
    else:
        candidates = {name: Candidate(name, -1, None, str(path)) for name, path in finder.on_disk.items()}
    candidates = _with_labels(candidates, finder, problems)
    members = _members(candidates, listed, protocols)
    clips = {clip.name: clip for clip in check_clips(list(candidates.values()), finder.locate, problems)}
    if not clips:
        raise RawDataError([*problems, Problem(str(raw_dir), "has no good clip", one_clip=False)])
    base_splits, unions = to_base_splits(clips, members)
    classes = {f"{p.name}_{split}": p.num_classes for p in protocols for split in ("train", "validation", "test")}
    splits = {name: ProtocolSplit(tuple(union), classes[name]) for name, union in unions.items()}
    _log_sizes(base_splits, splits, protocols)
    metadata = {"protocols": to_metadata(splits)}
    return RawClips(finder.modalities, tuple(finder.class_names), base_splits, problems, metadata)


def _read_all_lists(
    raw_dir: Path, finder: ClipFinder, protocols: Sequence[Protocol], problems: list[Problem]
) -> dict[str, list[Candidate]]:
    """Returns protocol split to its clips, of all protocols that have lists."""
    listed = {}
    for protocol in protocols:
        places = [raw_dir / LISTS_FOLDER / folder for folder in protocol.lists]
        found = [place for place in places if find_lists(place, finder.modalities)]
        if len(found) > 1:
            both = " and ".join(place.name for place in found)
            what = f"{both} both hold lists of protocol {protocol.name}; keep one"
            raise RawDataError([Problem(str(raw_dir / LISTS_FOLDER), what, one_clip=False)])
        for place in found:
            lists = find_lists(place, finder.modalities)
            for split, candidates in read_lists(lists, protocol.num_classes, finder.name_of, problems).items():
                listed[f"{protocol.name}_{split}"] = candidates
    return listed


def _merge(listed: Mapping[str, Sequence[Candidate]], problems: list[Problem]) -> dict[str, Candidate]:
    """Returns every clip once, as the first list has it; lists that contradict each other are problems."""
    merged: dict[str, Candidate] = {}
    split_in_protocol: dict[tuple[str, str], Candidate] = {}
    for split, candidates in listed.items():
        protocol = split.rpartition("_")[0]
        for candidate in candidates:
            first = merged.setdefault(candidate.name, candidate)
            said = (candidate.frame_count, candidate.label)
            if said != (first.frame_count, first.label):
                there = f"{first.frame_count} and {first.label} at {first.where}"
                what = f"{candidate.name} has {said[0]} frames and label {said[1]} here, but {there}"
                problems.append(Problem(candidate.where, what, kind="mislabelled"))
            twin = split_in_protocol.setdefault((protocol, candidate.name), candidate)
            if twin is not candidate:
                what = f"{candidate.name} is in two splits of {protocol}: {twin.where}"
                problems.append(Problem(candidate.where, what, kind="duplicated"))
    return merged


def _with_labels(
    candidates: Mapping[str, Candidate], finder: ClipFinder, problems: list[Problem]
) -> dict[str, Candidate]:
    """Gives clips that were found on disk their labels, and makes sure that lists agree with the names of the clips."""
    good = {}
    for name, candidate in candidates.items():
        try:
            label = finder.label_of(name)
        except ValueError as error:
            problems.append(Problem(candidate.where, str(error), kind="mislabelled"))
            continue
        if candidate.label not in (-1, label):
            what = f"expected label {label}, as the name of {name} says, found {candidate.label}"
            problems.append(Problem(candidate.where, what, kind="mislabelled"))
            continue
        good[name] = dataclasses.replace(candidate, label=label)
    return good


def _members(
    candidates: Mapping[str, Candidate], listed: Mapping[str, Sequence[Candidate]], protocols: Sequence[Protocol]
) -> dict[str, Collection[str]]:
    """Returns protocol split to the names of its clips."""
    members: dict[str, Collection[str]] = {}
    for protocol in protocols:
        splits = [f"{protocol.name}_{split}" for split in ("train", "validation", "test")]
        if any(split in listed for split in splits):
            members |= {split: {c.name for c in listed[split]} for split in splits if split in listed}
        elif any(map(protocol.needs, candidates)):
            for split in ("train", "validation"):
                members[f"{protocol.name}_{split}"] = {n for n in candidates if protocol.split_of(n) == split}
    return members


def _log_sizes(
    base_splits: Mapping[str, Sequence[RawClip]], splits: Mapping[str, ProtocolSplit], protocols: Sequence[Protocol]
) -> None:
    whole = {f"{protocol.name}_{split}": size for protocol in protocols for split, size in protocol.sizes.items()}
    for name, split in splits.items():
        size = sum(len(base_splits[base_split]) for base_split in split.base_splits)
        if size != whole.get(name, size):
            logging.warning("%s has %d clips here; in the whole data set it has %d", name, size, whole[name])
        else:
            logging.info("%s has %d clips", name, size)
