"""Protocols: splits that share clips, each a union of base splits, so that no clip is stored twice.

Base splits are disjoint and are what is stored. A split of a protocol, such as "cs_train", names the base splits that
make it up, and its number of classes.
"""

import collections
import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_TERM = re.compile(r"(?P<split>[\w-]+)(?P<part>\[(?P<bounds>[^\]]*)\])?")
_PERCENTAGES = re.compile(r"(-?[0-9.]+%)?:(-?[0-9.]+%)?")


@dataclasses.dataclass(frozen=True)
class ProtocolSplit:
    """One split of a protocol."""

    base_splits: tuple[str, ...]  # the stored splits that make it up, none of which share a clip
    num_classes: int  # its classes are the first ones of the data set


def to_base_splits(
    clips: Mapping[str, T], members: Mapping[str, Collection[str]]
) -> tuple[dict[str, list[T]], dict[str, list[str]]]:
    """Cuts clips (name -> any value) into base splits, one for each combination of protocol splits that some are in.

    `members` are protocol split, such as "cs_train" -> the names of its clips, whether they are in `clips` or not.

    Returns:
        Base split -> its clips in the order of `clips`, and protocol split -> its base splits. Clips that are in no
        protocol split and protocol splits without a clip are left out.
    """
    base: dict[tuple[str, ...], list[T]] = collections.defaultdict(list)
    for name, clip in clips.items():
        splits = tuple(split for split, names in members.items() if name in names)
        if splits:
            base[splits].append(clip)
    unions = {split: ["-".join(splits) for splits in base if split in splits] for split in members}
    return {"-".join(splits): part for splits, part in base.items()}, {s: parts for s, parts in unions.items() if parts}


def to_metadata(protocols: Mapping[str, ProtocolSplit]) -> dict[str, Any]:
    """Returns protocols as they are stored in a data set's metadata, under "protocols"."""
    return {name: {"splits": list(each.base_splits), "classes": each.num_classes} for name, each in protocols.items()}


def from_metadata(metadata: Mapping[str, Any] | None) -> dict[str, ProtocolSplit]:
    """Returns the protocol splits in the metadata of a prepared data set; none if it has no protocols."""
    stored = (metadata or {}).get("protocols", {})
    return {name: ProtocolSplit(tuple(entry["splits"]), entry["classes"]) for name, entry in stored.items()}


def resolve(
    spec: str, protocols: Mapping[str, ProtocolSplit], base_splits: Collection[str], num_classes: int
) -> tuple[str, int]:
    """Returns a split in base splits, in the notation of TFDS ("a+b[:20%]"), and its number of classes.

    A percentage of a protocol split, such as "cs_train[:20%]", is that percentage of each of its base splits.

    Raises:
        ValueError: there is no such split, a part of a protocol split is not in percent, or two splits share clips.
    """
    terms: list[str] = []
    classes = 0
    used: dict[str, str] = {}
    for term in re.split(r"\s*\+\s*", spec.strip()):
        match = _TERM.fullmatch(term)
        if match is None or (match["split"] not in protocols and match["split"] not in base_splits):
            raise ValueError(f"there is no split {term!r}")
        name, part = match["split"], match["part"] or ""
        split = protocols.get(name, ProtocolSplit((name,), num_classes))
        if name in protocols and part and not _PERCENTAGES.fullmatch(match["bounds"]):
            raise ValueError(
                f"{term!r}: a part of a protocol's split must be given in percent, such as {name}[:20%]; "
                f"{name} is stored as {len(split.base_splits)} splits, each of which gives that percentage"
            )
        terms += [f"{base_split}{part}" for base_split in split.base_splits]
        classes = max(classes, split.num_classes)
        for base_split in split.base_splits:
            if protocols and used.setdefault(base_split, name) != name:
                raise ValueError(f"{spec!r}: {used[base_split]} and {name} share clips, those of {base_split}")
    return "+".join(terms), classes
