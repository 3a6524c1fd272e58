"""The walk over a LIST_ENTRY ring: every way in which a ring can be damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.formats.lists import ENTRY_BOUND, Walk, walk
from volatility3.plugins.windows.apcaudit.model import Ending

Links = dict[int, tuple[int, int]]

HEAD, A, B, C = 0x1000, 0x2000, 0x3000, 0x4000
NOWHERE = 0xDEAD0000


def ring(*addresses: int) -> Links:
    """Return an intact ring of LIST_ENTRYs as address: (Flink, Blink)."""
    around = (addresses[-1], *addresses, addresses[0])
    return {at: (around[place + 2], around[place]) for place, at in enumerate(addresses)}


def flink(links: Links, **changed: int) -> Links:
    """Replay a write to the Flinks of named entries."""
    names = {"head": HEAD, "a": A, "b": B, "c": C}
    return links | {names[name]: (target, links[names[name]][1]) for name, target in changed.items()}


def blink(links: Links, **changed: int) -> Links:
    """Replay a write to the Blinks of named entries."""
    names = {"head": HEAD, "a": A, "b": B, "c": C}
    return links | {names[name]: (links[names[name]][0], target) for name, target in changed.items()}


def without(links: Links, *addresses: int) -> Links:
    """Take entries out of readable memory."""
    return {at: pair for at, pair in links.items() if at not in addresses}


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        pytest.param(ring(HEAD), Walk((), Ending.CLOSED, HEAD), id="empty"),
        pytest.param(ring(HEAD, A), Walk((A,), Ending.CLOSED, A), id="one"),
        pytest.param(ring(HEAD, A, B, C), Walk((A, B, C), Ending.CLOSED, C), id="many"),
        pytest.param(
            flink(ring(HEAD, A, B, C), c=A), Walk((A, B, C), Ending.CYCLE, C), id="the last points to the first"
        ),
        pytest.param(
            flink(ring(HEAD, A, B, C), c=B), Walk((A, B, C), Ending.CYCLE, C), id="the last points to the middle"
        ),
        pytest.param(flink(ring(HEAD, A, B, C), b=B), Walk((A, B), Ending.CYCLE, B), id="one points to itself"),
        pytest.param(
            ring(HEAD) | {HEAD: (B, HEAD)} | ring(A, B, C),
            Walk((B, C, A), Ending.CYCLE, A),
            id="the head points into a ring without it, as KeFlushQueueApc leaves it",
        ),
        pytest.param(
            ring(HEAD) | {HEAD: (A, HEAD)} | blink(ring(A, B, C), c=NOWHERE),
            Walk((A, B, C), Ending.CYCLE, C, C),
            id="such a ring with a defect of its own",
        ),
        pytest.param(
            blink(ring(HEAD, A, B, C), b=HEAD), Walk((A, B, C), Ending.CLOSED, C, B), id="a Blink past its predecessor"
        ),
        pytest.param(
            blink(ring(HEAD, A, B, C), b=NOWHERE, c=NOWHERE),
            Walk((A, B, C), Ending.CLOSED, C, B),
            id="the first of two broken Blinks is told",
        ),
        pytest.param(
            blink(ring(HEAD, A, B), head=A), Walk((A, B), Ending.CLOSED, B, HEAD), id="the head's Blink is not the last"
        ),
        pytest.param(
            blink(ring(HEAD), head=A), Walk((), Ending.CLOSED, HEAD, HEAD), id="empty but for the head's Blink"
        ),
        pytest.param(
            flink(ring(HEAD, A, B, C), a=C),
            Walk((A, C), Ending.CLOSED, C, C),
            id="an entry jumped over by its predecessor alone",
        ),
        pytest.param({}, Walk((), Ending.UNREADABLE, HEAD), id="the head unreadable"),
        pytest.param(
            without(ring(HEAD, A, B), A), Walk((), Ending.UNREADABLE, HEAD, None, A), id="the first entry unreadable"
        ),
        pytest.param(
            without(ring(HEAD, A, B), B), Walk((A,), Ending.UNREADABLE, A, None, B), id="the second entry unreadable"
        ),
        pytest.param(flink(ring(HEAD, A), a=0), Walk((A,), Ending.UNREADABLE, A, None, 0), id="a null Flink"),
        pytest.param(
            flink(ring(HEAD, A, B), a=B + 4),
            Walk((A,), Ending.MISALIGNED, A, None, B + 4),
            id="a Flink to half a pointer",
        ),
        pytest.param(
            flink(blink(ring(HEAD, A, B), a=NOWHERE), b=B + 1),
            Walk((A, B), Ending.MISALIGNED, B, A, B + 1),
            id="a broken Blink before a misaligned Flink",
        ),
        pytest.param(
            ring(HEAD, A, B) | {C: (A, C)},
            Walk((A, B), Ending.CLOSED, B),
            id="another list's link into this one does not disturb it",
        ),
    ],
)
def test_how_a_walk_ends(links: Links, expected: Walk) -> None:
    """A walk gives what was met up to the damage, how it ended and where it led, and the first link that is broken."""
    assert walk(links.get, HEAD, pointer_size=8) == expected


def test_two_lists_that_share_a_tail() -> None:
    """A list whose Flink was led into another list never returns to its own head: it ends at the other's."""
    other = 0x9000
    links = flink(ring(HEAD, A), a=C) | ring(other, B, C)
    known = walk(links.get, HEAD, pointer_size=8, is_other_head=lambda address: address == other)
    assert known == Walk((A, C), Ending.OTHER_HEAD, C, C)
    assert walk(links.get, HEAD, pointer_size=8) == Walk((A, C, other, B), Ending.CYCLE, B)
    assert walk(links.get, other, pointer_size=8, is_other_head=lambda _: False) == Walk((B, C), Ending.CLOSED, C)


def test_a_lists_own_head_is_no_other_head() -> None:
    """A walk that comes back to its own head has closed, whatever else that address is taken for."""
    assert walk(ring(HEAD).get, HEAD, pointer_size=8, is_other_head=lambda _: True) == Walk((), Ending.CLOSED, HEAD)


@pytest.mark.parametrize(("pointer_size", "ending"), [(4, Ending.CLOSED), (8, Ending.MISALIGNED)])
def test_alignment_is_that_of_the_machine(pointer_size: int, ending: Ending) -> None:
    """A multiple of four is aligned on x86 and not on x64."""
    assert walk(ring(HEAD, A + 4).get, HEAD, pointer_size=pointer_size).ending is ending


@pytest.mark.parametrize(
    ("entries", "ending", "count"),
    [(3, Ending.CLOSED, 3), (4, Ending.CLOSED, 4), (5, Ending.BOUND, 4)],
)
def test_a_list_is_followed_to_the_bound(entries: int, ending: Ending, count: int) -> None:
    """A list of as many entries as the bound is read whole, a longer one is cut and says so."""
    links = ring(HEAD, *range(A, A + entries * 0x10, 0x10))
    result = walk(links.get, HEAD, pointer_size=8, bound=4)
    assert (result.ending, len(result.entries)) == (ending, count)


ADDRESSES = st.sampled_from([HEAD, A, B, C, 0x5000, 0x6000, 0x6004, 0, NOWHERE])
ANY_LINKS = st.dictionaries(ADDRESSES, st.tuples(ADDRESSES, ADDRESSES))


@given(links=ANY_LINKS, bound=st.integers(0, 6))
def test_any_graph_of_links_ends(links: Links, bound: int) -> None:
    """Whatever the links, a walk ends, reads at most bound + 1 LIST_ENTRYs, and meets each but once."""
    reads: list[int] = []

    def read(address: int) -> tuple[int, int] | None:
        reads.append(address)
        return links.get(address)

    result = walk(read, HEAD, pointer_size=8, bound=bound)
    assert len(reads) == len(set(reads)) <= bound + 1
    assert len(set(result.entries)) == len(result.entries) <= bound
    assert HEAD not in result.entries
    assert result.ended_at == (result.entries[-1] if result.entries else HEAD)
    assert all(entry % 8 == 0 and entry in links for entry in result.entries)
    assert result.broken_at is None or result.broken_at in (HEAD, *result.entries)


@given(order=st.permutations([0x2000, 0x3000, 0x4000, 0x5000, 0x6000]), count=st.integers(0, 5))
def test_an_intact_ring_is_met_in_its_order(order: list[int], count: int) -> None:
    """An intact ring closes, in its order and with nothing broken."""
    addresses = order[:count]
    result = walk(ring(HEAD, *addresses).get, HEAD, pointer_size=8)
    assert result == Walk(tuple(addresses), Ending.CLOSED, (HEAD, *addresses)[-1])


@given(
    count=st.integers(1, 5),
    at=st.integers(0, 5),
    backward=st.booleans(),
    target=ADDRESSES,
)
def test_no_single_write_to_a_ring_goes_unseen(count: int, at: int, backward: bool, target: int) -> None:
    """Any one link of a ring that is changed shows, in the ending or in what is broken."""
    addresses = [HEAD, A, B, C, 0x5000, 0x6000][: count + 1]
    links = ring(*addresses)
    entry = addresses[at % len(addresses)]
    forth, back = links[entry]
    damaged = links | {entry: (forth, target) if backward else (target, back)}
    result = walk(damaged.get, HEAD, pointer_size=8)
    assert (result.ending is Ending.CLOSED and result.broken_at is None) == (damaged == links)


def test_the_bound_is_beyond_what_threads_have_queued() -> None:
    """The bound leaves room for thousands of APCs."""
    links = ring(HEAD, *range(0x10000, 0x10000 + 4000 * 0x10, 0x10))
    assert ENTRY_BOUND >= 4000
    assert walk(links.get, HEAD, pointer_size=8).ending is Ending.CLOSED
