"""Random cases for readers of foreign bytes, in bounded time and memory.

RGBD_FUZZ_EXAMPLES is how many the slow tests try of each kind.
"""

import os
import resource
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS, MEGABYTES = 20, 500  # for a case; for all of them
MANY = int(os.environ.get("RGBD_FUZZ_EXAMPLES", "2000"))
examples = pytest.mark.parametrize("examples", [200, pytest.param(MANY, marks=pytest.mark.slow)])


def fuzz(check: Callable, cases: st.SearchStrategy, examples: int) -> None:
    """Checks random cases, and that the memory they take is bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(max_examples=examples, deadline=1000 * SECONDS, suppress_health_check=health, database=None)
    options(given(cases)(check))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


def error_of(read: Callable) -> ValueError | None:
    """Returns how a reader refuses what it reads, None if it does not."""
    try:
        read()
    except ValueError as error:
        return error
    return None


@st.composite
def damaged(draw, originals: list[bytes]) -> bytes:
    """A file some bytes of which were replaced, inserted or lost, most often in its header."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, 400) | st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])
