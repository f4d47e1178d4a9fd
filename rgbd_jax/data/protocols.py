"""Protocols: splits that share clips, each a union of base splits, so that no clip is kept twice.

Base splits are disjoint and are what is stored. A split of a protocol, such as "cs_train", names the base splits that
make it up, and how many classes it has.
"""

import collections
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_TERM = re.compile(r"(?P<split>[\w-]+)(?P<part>\[(?P<bounds>[^\]]*)\])?")
_PERCENTAGES = re.compile(r"(-?[0-9.]+%)?:(-?[0-9.]+%)?")


@dataclasses.dataclass(frozen=True)
class ProtocolSplit:
    """One split of a protocol.

    Attributes:
        base_splits: the stored splits that make it up, none of which share a clip.
        num_classes: its number of classes: the first ones of the data set.
    """

    base_splits: tuple[str, ...]
    num_classes: int


def to_base_splits(
    clips: Mapping[str, T], members: Mapping[str, Collection[str]]
) -> tuple[dict[str, list[T]], dict[str, list[str]]]:
    """Cuts clips into base splits, one for each set of protocol splits that some clips have in common.

    Args:
        clips: name of a clip to whatever stands for it.
        members: protocol split, such as "cs_train", to the names of its clips, whether they are in `clips` or not.

    Returns:
        Base split to its clips in the order of `clips`, and protocol split to its base splits. Clips that no protocol
        split has are in no base split, and protocol splits without a clip are left out.
    """
    base: dict[str, list[T]] = collections.defaultdict(list)
    unions: dict[str, dict[str, None]] = {split: {} for split in members}
    for name, clip in clips.items():
        splits = [split for split, names in members.items() if name in names]
        if not splits:
            continue
        base_split = "-".join(splits)
        base[base_split].append(clip)
        for split in splits:
            unions[split][base_split] = None
    return dict(base), {split: list(base_splits) for split, base_splits in unions.items() if base_splits}


def to_metadata(protocols: Mapping[str, ProtocolSplit]) -> dict[str, Any]:
    """Returns what is stored with a data set; `from_metadata` reads it back."""
    return {
        name: {"splits": list(split.base_splits), "classes": split.num_classes} for name, split in protocols.items()
    }


def from_metadata(metadata: Mapping[str, Any] | None) -> dict[str, ProtocolSplit]:
    """Returns the protocol splits of a prepared data set, none if it has no protocols.

    Args:
        metadata: the data set's metadata, with "protocols" as `to_metadata` returns it.
    """
    stored = (metadata or {}).get("protocols", {})
    return {name: ProtocolSplit(tuple(entry["splits"]), entry["classes"]) for name, entry in stored.items()}


def split_sizes(stored: Mapping[str, int], protocols: Mapping[str, ProtocolSplit]) -> dict[str, int]:
    """Returns the splits that can be asked for and their numbers of clips.

    Args:
        stored: base split to its number of clips.
        protocols: the protocol splits by name; where there are none, the stored splits themselves are returned.
    """
    if not protocols:
        return dict(stored)
    return {name: sum(stored[part] for part in split.base_splits) for name, split in protocols.items()}


def resolve(
    spec: str, protocols: Mapping[str, ProtocolSplit], base_splits: Collection[str], num_classes: int
) -> tuple[str, int]:
    """Writes a split in terms of base splits.

    A percentage of a protocol split is that percentage of each of its base splits, so that complementary parts make up
    the whole.

    Args:
        spec: splits as TFDS writes them, of protocols too: "cs_train", "cs_train[:20%]", "train+validation".
        protocols: the protocol splits by name.
        base_splits: the stored splits.
        num_classes: number of classes of the data set.

    Returns:
        The same in base splits alone, and the number of classes.

    Raises:
        ValueError: there is no such split, a part of a protocol split is not given in percent, or two splits of a sum
            share clips.
    """
    terms: list[str] = []
    classes = 0
    used: dict[str, str] = {}
    for term in re.split(r"\s*\+\s*", spec.strip()):
        match = _TERM.fullmatch(term)
        if match is None or (match["split"] not in protocols and match["split"] not in base_splits):
            raise ValueError(f"there is no split {term!r}")
        name, part = match["split"], match["part"] or ""
        if name not in protocols:
            terms.append(term)
            parts: Sequence[str] = (name,)
            classes = num_classes  # the most there are
        else:
            if part and not _PERCENTAGES.fullmatch(match["bounds"]):
                raise ValueError(
                    f"{term!r}: a part of a protocol's split must be given in percent, such as {name}[:20%]; "
                    f"{name} is stored as {len(protocols[name].base_splits)} splits, each of which gives that share"
                )
            parts = protocols[name].base_splits
            terms += [f"{base_split}{part}" for base_split in parts]
            classes = max(classes, protocols[name].num_classes)
        for base_split in parts:
            if protocols and used.setdefault(base_split, name) != name:
                raise ValueError(f"{spec!r}: {used[base_split]} and {name} share clips, those of {base_split}")
    return "+".join(terms), classes


def describe(protocols: Mapping[str, ProtocolSplit], base_splits: Collection[str]) -> str:
    """Returns the names that `resolve` knows, for messages."""
    stored = ", ".join(sorted(base_splits))
    return f"{', '.join(sorted(protocols))} (protocols) and {stored} (their parts)" if protocols else stored
