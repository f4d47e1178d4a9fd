"""The protocols of NTU RGB+D, as rules on the names of clips."""

import re
from collections.abc import Callable
from typing import NamedTuple

from rgbd_jax.ingest.protocols import Protocol

CLASSES_60, _CLASSES_120 = 60, 120
_FIRST_SETUP_OF_120 = 18
_SUBJECTS_60 = {1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38}
_SUBJECTS_120 = _SUBJECTS_60 | {
    *(45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89, *range(91, 96), 97, 98, 100, 103)
}


class ClipName(NamedTuple):
    """The parts of a clip's name; all numbers count from 1."""

    setup: int
    camera: int
    subject: int
    replication: int
    action: int


def parse_name(name: str) -> ClipName:
    """Parses a name such as "S001C001P001R001A001"; raises ValueError for another one."""
    match = re.fullmatch(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})", name)
    if match is None:
        raise ValueError(f"expected a name such as S001C001P001R001A001, found {name!r}")
    return ClipName(*map(int, match.groups()))


def _rule(is_training: Callable[[ClipName], bool], *, of_60: bool) -> Callable[[str], str | None]:
    def split_of(name: str) -> str | None:
        clip = parse_name(name)
        if of_60 and clip.setup >= _FIRST_SETUP_OF_120:
            return None
        return "train" if is_training(clip) else "validation"

    return split_of


_SIZES_CS, _SIZES_CV = {"train": 40320, "validation": 16560}, {"train": 37920, "validation": 18960}
PROTOCOLS = (
    Protocol("cs", ("@CS",), CLASSES_60, _rule(lambda clip: clip.subject in _SUBJECTS_60, of_60=True), _SIZES_CS),
    Protocol("cv", ("@CV",), CLASSES_60, _rule(lambda clip: clip.camera != 1, of_60=True), _SIZES_CV),
    Protocol("csub", ("@CSub",), _CLASSES_120, _rule(lambda clip: clip.subject in _SUBJECTS_120, of_60=False)),
    Protocol("cset", ("@CSet",), _CLASSES_120, _rule(lambda clip: clip.setup % 2 == 0, of_60=False)),
)
"""The first two are those of NTU RGB+D 60, the others those of NTU RGB+D 120."""
