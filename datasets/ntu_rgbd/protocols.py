"""The protocols of NTU RGB+D, as rules on the names of clips."""

import re
from typing import NamedTuple

from rgbd_jax.ingest.protocol_clips import Protocol

_NAME = re.compile(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})")
_FIRST_SETUP_OF_120 = 18
_VALIDATION_CAMERA = 1

# fmt: off
_SUBJECTS_60 = frozenset({1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38})
_SUBJECTS_120 = _SUBJECTS_60 | {
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95,
    97, 98, 100, 103,
}
# fmt: on


class ClipName(NamedTuple):
    """What the name of a clip says; all numbers count from 1."""

    setup: int
    camera: int
    subject: int
    replication: int
    action: int


def parse_name(name: str) -> ClipName:
    """Reads a name such as "S001C001P001R001A001".

    Raises:
        ValueError: it is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"expected a name such as S001C001P001R001A001, found {name!r}")
    return ClipName(*map(int, match.groups()))


def _of_60(name: str) -> bool:
    return parse_name(name).setup < _FIRST_SETUP_OF_120


def _of_120(name: str) -> bool:
    return not _of_60(name)


def _split(training: bool) -> str:
    return "train" if training else "validation"


def _cross_subject_60(name: str) -> str | None:
    return _split(parse_name(name).subject in _SUBJECTS_60) if _of_60(name) else None


def _cross_view(name: str) -> str | None:
    return _split(parse_name(name).camera != _VALIDATION_CAMERA) if _of_60(name) else None


def _cross_subject_120(name: str) -> str:
    return _split(parse_name(name).subject in _SUBJECTS_120)


def _cross_setup(name: str) -> str:
    return _split(parse_name(name).setup % 2 == 0)


PROTOCOLS = (
    Protocol("cs", ("@CS",), 60, _cross_subject_60, _of_60, {"train": 40320, "validation": 16560}),
    Protocol("cv", ("@CV",), 60, _cross_view, _of_60, {"train": 37920, "validation": 18960}),
    Protocol("csub", ("@CSub",), 120, _cross_subject_120, _of_120),
    Protocol("cset", ("@CSet",), 120, _cross_setup, _of_120),
)
"""The first two are those of NTU RGB+D 60, the others those of NTU RGB+D 120."""
