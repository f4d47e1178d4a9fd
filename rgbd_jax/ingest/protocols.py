"""The clips of data sets with several protocols: which there are, and which split of which protocol has them."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from rgbd_jax.data.source import ProtocolSplit, to_base_splits
from rgbd_jax.ingest.clip_files import ClipSpec
from rgbd_jax.ingest.discovery import Locate, RawClips, check_clips
from rgbd_jax.ingest.problems import Problem, RawDataError, bad_data
from rgbd_jax.ingest.split_lists import LISTS_FOLDER, find_lists, read_lists

log = logging.getLogger("rgbd_jax")

SplitsOfClips = Mapping[str, Sequence[ClipSpec]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to cut a data set into training and evaluation; its splits are "NAME_train" and "NAME_validation"."""

    name: str
    lists: tuple[str, ...]  # names that the folder of its split lists may have
    num_classes: int  # the first ones of the data set
    split_of: Callable[[str], str | None]  # the rule: name of a clip to "train", "validation" or None for neither
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of splits in the whole data set, if known


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a data set with protocols lies on disk."""

    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    name_of: Callable[[str], str]  # the clip that a path of a split list stands for, or ValueError
    label_of: Callable[[str], int]  # the label that is part of a clip's name, or ValueError
    on_disk: Mapping[str, Path]  # name of every clip on disk to where it lies
    locate: Locate


def find_protocol_clips(
    raw_dir: Path, layout: Layout, protocols: Sequence[Protocol], problems: list[Problem]
) -> RawClips:
    """Finds and checks the clips of all protocols; `problems` are what is wrong already.

    Where there are split lists (in `dataset_splits/FOLDER`, one folder a protocol), they give the clips, their number
    of frames and their split; protocols without lists follow their rule over these clips. Without any lists the clips
    are those on disk. The clips are returned in base splits, with the protocols as metadata.

    Raises:
        RawDataError: the lists cannot be used, or there are no clips.
    """
    listed = {p.name: lists for p in protocols if (lists := _lists_of(p, raw_dir, layout, problems))}
    named = {name: ClipSpec(name, -1, str(path)) for name, path in layout.on_disk.items()}
    named = _with_labels(_merge(listed, problems) if listed else named, layout, problems)
    members: dict[str, Collection[str]] = {}  # split of a protocol to names of clips
    for protocol in protocols:
        if protocol.name in listed:
            splits = listed[protocol.name].items()
            members |= {f"{protocol.name}_{split}": {clip.name for clip in clips} for split, clips in splits}
        else:
            for split in ("train", "validation"):
                members[f"{protocol.name}_{split}"] = {name for name in named if protocol.split_of(name) == split}
    clips = {clip.name: clip for clip in check_clips(list(named.values()), layout.locate, problems)}
    if not clips:
        raise RawDataError([*problems, Problem(str(raw_dir), "has no good clip", skippable=False)])
    base_splits, unions = to_base_splits(clips, members)
    protocol_splits = {}
    for protocol in protocols:
        for split in ("train", "validation", "test"):
            parts = unions.get(name := f"{protocol.name}_{split}")
            if parts:
                protocol_splits[name] = ProtocolSplit(splits=parts, classes=protocol.num_classes)
                size = sum(len(base_splits[part]) for part in parts)
                if size != (whole := protocol.sizes.get(split, size)):
                    log.warning("%s has %d clips here; in the whole data set it has %d", name, size, whole)
    return RawClips(layout.modalities, layout.class_names, base_splits, problems, {"protocols": protocol_splits})


def _lists_of(protocol: Protocol, raw_dir: Path, layout: Layout, problems: list[Problem]) -> SplitsOfClips:
    """Reads the split lists of a protocol; {} if it has none."""
    root = raw_dir / LISTS_FOLDER
    found = [lists for name in protocol.lists if (lists := find_lists(root / name, layout.modalities))]
    if len(found) > 1:
        raise bad_data(root, f"{' and '.join(protocol.lists)} both hold lists of protocol {protocol.name}; keep one")
    return read_lists(found[0], problems, protocol.num_classes, layout.name_of) if found else {}


def _merge(listed: Mapping[str, SplitsOfClips], problems: list[Problem]) -> dict[str, ClipSpec]:
    """Returns every clip once, as the first list has it; lists that contradict each other are problems."""
    merged: dict[str, ClipSpec] = {}
    for protocol, splits in listed.items():
        of_protocol: dict[str, ClipSpec] = {}
        for clip in (clip for clips in splits.values() for clip in clips):
            first = merged.setdefault(clip.name, clip)
            if (clip.frame_count, clip.label) != (first.frame_count, first.label):
                there = f"{first.frame_count} and {first.label} at {first.where}"
                what = f"{clip.name} has {clip.frame_count} frames and label {clip.label} here, but {there}"
                problems.append(Problem(clip.where, what, "mislabelled"))
            twin = of_protocol.setdefault(clip.name, clip)
            if twin is not clip:
                what = f"{clip.name} is in two splits of {protocol}: {twin.where}"
                problems.append(Problem(clip.where, what, "duplicated"))
    return merged


def _with_labels(clips: Mapping[str, ClipSpec], layout: Layout, problems: list[Problem]) -> dict[str, ClipSpec]:
    """Gives clips that were found on disk their labels, and checks that lists agree with the names of the clips."""
    good = {}
    for name, clip in clips.items():
        try:
            label = layout.label_of(name)
            if clip.label not in (-1, label):
                raise ValueError(f"expected label {label}, by the name of {name}, found {clip.label}")
            good[name] = dataclasses.replace(clip, label=label)
        except ValueError as error:
            problems.append(Problem(clip.where, str(error), "mislabelled"))
    return good
