"""Walk a LIST_ENTRY ring that nobody vouches for, and tell how the walk ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .model import Ending

LinkReader = Callable[[int], "tuple[int, int] | None"]
"""Reads the LIST_ENTRY at a virtual address as (Flink, Blink); None where it cannot be read."""

ENTRY_BOUND = 4096
"""How many entries of one list are followed: far beyond what a thread ever has queued."""


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


def walk(read: LinkReader, head: int, *, pointer_size: int, bound: int = ENTRY_BOUND) -> Walk:
    """Follow the Flinks of a `LIST_ENTRY *` ring from its head, checking every link.

    The kernel delivers by Flink, so an entry whose Blink disagrees is still reported and still
    followed; the disagreement is kept in `broken_at`.

    Args:
        read: reads one LIST_ENTRY.
        head: virtual address of the list head.
        pointer_size: size of a pointer in bytes; links are aligned to it.
        bound: the number of entries after which the walk gives up.
    """
    entries: list[int] = []
    seen = {head}
    broken_at: int | None = None
    at = head
    links = read(head)
    if links is None:
        return Walk((), Ending.UNREADABLE, head)
    head_blink = links[1]
    broken_blink: int | None = None
    while True:
        following = links[0]
        if following == head:
            if broken_at is None and head_blink != at:
                broken_at = head
            return Walk(tuple(entries), Ending.CLOSED, at, broken_at)
        if following in seen:
            # The entry where a closed ring was entered points back into the ring: that is the cycle, no second defect.
            if broken_at == following and broken_blink == at:
                broken_at = None
            return Walk(tuple(entries), Ending.CYCLE, at, broken_at)
        if following % pointer_size:
            return Walk(tuple(entries), Ending.MISALIGNED, at, broken_at)
        if len(entries) == bound:
            return Walk(tuple(entries), Ending.BOUND, at, broken_at)
        links = read(following)
        if links is None:
            return Walk(tuple(entries), Ending.UNREADABLE, at, broken_at)
        if broken_at is None and links[1] != at:
            broken_at, broken_blink = following, links[1]
        entries.append(following)
        seen.add(following)
        at = following
