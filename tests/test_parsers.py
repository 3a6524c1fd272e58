"""The parsers of bytes on right input that is changed: each ends, raises nothing, and keeps its bounds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.corpus import CORPORA
from fuzz.parsers import PARSERS

_MADE = {name: tuple(make()) for name, make in CORPORA.items()}

#: Where the numbers stand that lead somewhere, and values that lead astray; others are drawn as they come.
_AT = st.one_of(st.integers(0, 0x400), st.integers(0, 0x4000), st.sampled_from((0x3C, 0xF98, 0x1038, 0x2000, 0x2080)))
_BYTES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([value.to_bytes(4, "little") for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)]),
)


def changed(data: bytes, patches: list[tuple[int, bytes]], end: int | None) -> bytes:
    made = bytearray(data)
    for at, patch in patches:
        made[at : at + len(patch)] = patch
    return bytes(made[:end])


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_what_is_right(name: str) -> None:
    """What the corpus of a parser holds is taken."""
    for data in _MADE[name]:
        PARSERS[name](data)


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_changed(name: str, data: st.DataObject) -> None:
    """Whatever is changed, cut off or made up: no exception, no text that acts, nothing beyond a bound."""
    patches, end = st.lists(st.tuples(_AT, _BYTES), max_size=6), st.one_of(st.none(), st.integers(0, 0x2400))
    right = st.builds(changed, st.sampled_from(_MADE[name]), patches, end)
    PARSERS[name](data.draw(st.one_of(right, st.binary(max_size=0x200)), "input"))
