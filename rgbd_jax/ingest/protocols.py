"""The clips of data sets with several protocols: which there are, and which split of which protocol has them."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rgbd_jax.data.source import ProtocolSplit, to_base_splits
from rgbd_jax.ingest.clip_files import ClipSpec
from rgbd_jax.ingest.discovery import Locate, RawClips, check_clips
from rgbd_jax.ingest.problems import Problem, RawDataError, bad_data
from rgbd_jax.ingest.split_lists import LISTS_FOLDER, read_lists

log = logging.getLogger("rgbd_jax")

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to cut a data set into training and evaluation; its splits are "NAME_train" and "NAME_validation"."""

    name: str
    lists: tuple[str, ...]  # names that the folder of its split lists may have
    num_classes: int  # the first ones of the data set
    split_of: Callable[[str], str | None]  # the rule: name of a clip to "train", "validation" or None for neither
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of splits in the whole data set, if known


def find_protocol_clips(
    raw_dir: Path,
    protocols: Sequence[Protocol],
    class_names: tuple[str, ...],
    problems: list[Problem],
    on_disk: Mapping[str, Path],
    locate: Locate,
    name_of: Callable[[str], str],
    label_of: Callable[[str], int],
) -> RawClips:
    """Finds and checks the clips of all protocols; `problems` are what is wrong already.

    Where there are split lists (in `dataset_splits/FOLDER`, one folder a protocol), they give the clips, their number
    of frames and their split; protocols without lists follow their rule over these clips. Without any lists the clips
    are those on disk. The clips are returned in base splits, with the protocols as metadata.

    `on_disk` is the name of every clip on disk -> where it lies. `name_of` gives the clip that a path of a list stands
    for, and `label_of` the label that is part of a clip's name; both may raise ValueError.
    """
    listed = {}
    for protocol in protocols:
        folders = [raw_dir / LISTS_FOLDER / name for name in protocol.lists]
        found = [s for folder in folders if (s := read_lists(folder, problems, protocol.num_classes, name_of))]
        if len(found) > 1:
            names = " and ".join(protocol.lists)
            raise bad_data(folders[0].parent, f"{names} both hold lists of protocol {protocol.name}; keep one")
        listed[protocol.name] = found[0] if found else {}
    by_protocol = {name: list(itertools.chain(*splits.values())) for name, splits in listed.items()}
    if not any(listed.values()):
        by_protocol = {"": [ClipSpec(name, -1, str(path)) for name, path in sorted(on_disk.items())]}
    named = _merge(by_protocol, label_of, problems)
    clips = {clip.name: clip for clip in check_clips({"": list(named.values())}, locate, problems)[""]}
    if not clips:
        raise RawDataError([*problems, Problem(str(raw_dir), "has no good clip", skippable=False)])

    def members(protocol: Protocol, split: str) -> set[str]:
        if lists := listed[protocol.name]:
            return {clip.name for clip in lists.get(split, ())}
        return {name for name in clips if protocol.split_of(name) == split}

    splits = {f"{p.name}_{split}": (p, split) for p in protocols for split in _SPLITS}
    base_splits, unions = to_base_splits(clips, {name: members(*split) for name, split in splits.items()})
    for name, parts in unions.items():
        protocol, split = splits[name]
        size = sum(len(base_splits[part]) for part in parts)
        if size != (whole := protocol.sizes.get(split, size)):
            log.warning("%s has %d clips here; in the whole data set it has %d", name, size, whole)
    stored = {name: ProtocolSplit(splits=parts, classes=splits[name][0].num_classes) for name, parts in unions.items()}
    return RawClips(class_names, base_splits, problems, {"protocols": stored})


def _merge(
    listed: Mapping[str, Sequence[ClipSpec]], label_of: Callable[[str], int], problems: list[Problem]
) -> dict[str, ClipSpec]:
    """Returns every clip once, as the first protocol lists it, labelled by its name; contradictions are problems."""
    merged: dict[str, ClipSpec] = {}
    for protocol, clips in listed.items():
        seen: dict[str, ClipSpec] = {}
        for clip in clips:
            try:
                label = label_of(clip.name)
                if clip.label not in (-1, label):
                    raise ValueError(f"expected label {label}, by the name of {clip.name}, found {clip.label}")
            except ValueError as error:
                problems.append(Problem(clip.where, str(error), "mislabelled"))
                continue
            first = merged.setdefault(clip.name, dataclasses.replace(clip, label=label))
            if clip.frame_count != first.frame_count:
                what = f"{clip.name} has {clip.frame_count} frames here, but {first.frame_count} at {first.where}"
                problems.append(Problem(clip.where, what, "mislabelled"))
            if (twin := seen.setdefault(clip.name, clip)) is not clip:
                what = f"{clip.name} is in two splits of {protocol}: {twin.where}"
                problems.append(Problem(clip.where, what, "duplicated"))
    return merged
