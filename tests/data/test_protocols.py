"""Protocols: base splits are disjoint and make up every protocol split; splits are resolved to them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_jax.data.source import ProtocolSplit, resolve, to_base_splits

clips = st.lists(st.integers(0, 30), unique=True, max_size=20).map(lambda names: {str(n): -n for n in names})
memberships = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}_train", fullmatch=True), st.sets(st.integers(0, 30).map(str)), max_size=5
)


@given(clips=clips, members=memberships)
def test_base_splits_are_disjoint_and_make_up_every_protocol_split(clips, members):
    base, unions = to_base_splits(clips, members)
    stored = list(itertools.chain(*base.values()))
    assert len(stored) == len(set(stored))
    assert all(base.values())
    for split, names in members.items():
        expected = {clips[name] for name in clips if name in names}
        assert {clip for part in unions.get(split, ()) for clip in base[part]} == expected
    assert set(stored) == {clips[name] for name in clips if any(name in names for names in members.values())}
    for part in base.values():  # in the order of the clips
        assert part == [clip for clip in clips.values() if clip in part]
    # No more base splits than there are combinations of protocol splits.
    combinations = {tuple(name in names for names in members.values()) for name in clips} - {(False,) * len(members)}
    assert len(base) == len(combinations)


PROTOCOLS = {"cs_train": ProtocolSplit(("a", "b"), 60), "cs_validation": ProtocolSplit(("c",), 60)}


@pytest.mark.parametrize(
    ("spec", "stored", "classes"),
    [
        ("cs_train", "a+b", 60),
        (" cs_train + cs_validation ", "a+b+c", 60),
        ("cs_train[:20%]", "a[:20%]+b[:20%]", 60),
        ("cs_train[20%:40%]+c", "a[20%:40%]+b[20%:40%]+c", 120),
        ("cs_train[-5%:]", "a[-5%:]+b[-5%:]", 60),
        ("cs_train[:50%]+cs_train[50%:]", "a[:50%]+b[:50%]+a[50%:]+b[50%:]", 60),
        ("a[3:]", "a[3:]", 120),
    ],
)
def test_splits_are_written_in_base_splits(spec, stored, classes):
    assert resolve(spec, PROTOCOLS, {"a", "b", "c"}, 120) == (stored, classes)


@pytest.mark.parametrize("spec", ["cs", "", "cs_train[", "cs_train[:3]", "cs_train[2]", "cs_train+a", "cs_train+"])
def test_what_is_none_of_them_is_refused(spec):
    with pytest.raises(ValueError, match=r"no split|in percent|share clips"):
        resolve(spec, PROTOCOLS, {"a", "b", "c"}, 120)
