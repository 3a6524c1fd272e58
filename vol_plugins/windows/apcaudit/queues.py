"""Walk a LIST_ENTRY ring that nobody vouches for, and tell how the walk ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .model import Ending

LinkReader = Callable[[int], "tuple[int, int] | None"]
"""Reads the LIST_ENTRY at a virtual address as (Flink, Blink); None where it cannot be read."""

ENTRY_BOUND = 4096
"""How many entries of one list are followed: far beyond what a thread ever has queued."""

TOTAL_BOUND = 250_000
"""How many entries of all lists of an image are followed to ENTRY_BOUND; a busy server has some hundreds queued."""

ENTRIES_BEYOND = 16
"""How many entries of each list are followed once TOTAL_BOUND is used up, more than nearly any list has."""


class Budget:
    """How many entries all walks of one audit may follow together; `left` of them are not used up."""

    def __init__(self, total: int = TOTAL_BOUND) -> None:
        self.left = total

    def spend(self, entries: int) -> None:
        """Count entries that were followed."""
        self.left -= entries

    @property
    def of_a_list(self) -> int:
        """How many entries one list is followed for."""
        return min(ENTRY_BOUND, self.of_a_ring)

    @property
    def of_a_ring(self) -> int:
        """How many entries are followed where a ring is walked once for all that hangs on it."""
        return max(ENTRIES_BEYOND, self.left)


@dataclass(frozen=True, slots=True)
class Walk:
    """The LIST_ENTRY addresses met in the order of their Flinks, and how the walk ended.

    `ended_at` is the address of the LIST_ENTRY whose Flink ended the walk. `broken_at` is the first
    LIST_ENTRY whose Blink does not point to its predecessor, None when all of them do.
    """

    entries: tuple[int, ...]
    ending: Ending
    ended_at: int
    broken_at: int | None = None


def walk(
    read: LinkReader,
    head: int,
    *,
    pointer_size: int,
    bound: int = ENTRY_BOUND,
    is_other_head: Callable[[int], bool] = lambda _: False,
    is_others: Callable[[int], bool] = lambda _: False,
) -> Walk:
    """Follow the Flinks of a `LIST_ENTRY *` ring from its head, checking every link.

    The kernel delivers by Flink, so an entry whose Blink disagrees is still reported and still
    followed; the disagreement is kept in `broken_at`.

    Args:
        read: reads one LIST_ENTRY.
        head: virtual address of the list head.
        pointer_size: size of a pointer in bytes; links are aligned to it.
        is_other_head: tells whether an address is the head of another list, which ends the walk.
        is_others: tells whether an entry is another list's, which ends the walk behind it.
        bound: the number of entries after which the walk gives up.
    """
    links = read(head)
    if links is None:
        return Walk((), Ending.UNREADABLE, head)
    head_blink = links[1]
    entries: list[int] = []
    seen = {head}
    broken: dict[int, int] = {}
    at = head
    while True:
        following = links[0]
        if following == head:
            ending = Ending.CLOSED
            if head_blink != at:
                broken[head] = head_blink
            break
        if following in seen:
            ending = Ending.CYCLE
            # The entry where a closed ring was entered points back into the ring: that is the cycle, no second defect.
            if broken.get(following) == at:
                del broken[following]
            break
        if following % pointer_size:
            ending = Ending.MISALIGNED
            break
        if is_other_head(following):
            ending = Ending.OTHER_HEAD
            break
        if len(entries) == bound:
            ending = Ending.BOUND
            break
        links = read(following)
        if links is None:
            ending = Ending.UNREADABLE
            break
        if links[1] != at:
            broken[following] = links[1]
        entries.append(following)
        seen.add(following)
        at = following
        if is_others(at):
            ending = Ending.JOINS
            break
    return Walk(tuple(entries), ending, at, next(iter(broken), None))
