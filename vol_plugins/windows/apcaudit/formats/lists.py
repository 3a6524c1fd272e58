"""Walks doubly linked kernel lists (LIST_ENTRY) and reports how the walk ended and where Flink and Blink disagree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..model import Ending

LinkReader = Callable[[int], "tuple[int, int] | None"]
"""Reads the LIST_ENTRY at a virtual address as (Flink, Blink); None where it cannot be read."""

ENTRY_BOUND = 4096
"""How many entries of one list are followed; no thread has that many APCs queued."""

TOTAL_BOUND = 250_000
"""How many entries are followed in all lists of an image together; a busy server has some hundred APCs queued."""

ENTRIES_BEYOND = 16
"""How many entries of each list are followed once TOTAL_BOUND is used up; nearly every list is shorter."""


class Budget:
    """The number of list entries that all walks of one audit may follow together; `left` is what remains."""

    def __init__(self, total: int = TOTAL_BOUND) -> None:
        self.left = total

    def spend(self, entries: int) -> None:
        """Subtract entries that were followed."""
        self.left -= entries

    @property
    def per_list(self) -> int:
        """How many entries of one list may be followed now."""
        return min(ENTRY_BOUND, self.per_ring)

    @property
    def per_ring(self) -> int:
        """How many entries may be followed now where one walk of a ring serves every APC on it."""
        return max(ENTRIES_BEYOND, self.left)


@dataclass(frozen=True, slots=True)
class Walk:
    """The addresses of the LIST_ENTRYs in Flink order, and how the walk ended.

    `ended_at` is the address of the LIST_ENTRY whose Flink ended the walk. `broken_at` is the first
    LIST_ENTRY whose Blink does not point to its predecessor, None when every Blink does. `led_to` is the link that
    could not be followed; None where the walk ended otherwise, or where the head itself could not be read.
    """

    entries: tuple[int, ...]
    ending: Ending
    ended_at: int
    broken_at: int | None = None
    led_to: int | None = None


def walk(
    read: LinkReader,
    head: int,
    *,
    pointer_size: int,
    bound: int = ENTRY_BOUND,
    is_other_head: Callable[[int], bool] = lambda _: False,
    in_other_list: Callable[[int], bool] = lambda _: False,
) -> Walk:
    """Follow a list from its head by Flink and check every Blink.

    The kernel delivers APCs by Flink. An entry whose Blink disagrees is therefore reported and followed all the same;
    `broken_at` records it.

    Args:
        read: reads one LIST_ENTRY.
        head: virtual address of the list head.
        pointer_size: size of a pointer in bytes; links are aligned to it.
        bound: the number of entries after which the walk stops.
        is_other_head: whether an address is the head of another list; the walk ends in front of it.
        in_other_list: whether an entry was met in another list's walk; this walk ends behind it.
    """
    links = read(head)
    if links is None:
        return Walk((), Ending.UNREADABLE, head)
    head_blink = links[1]
    entries: list[int] = []
    seen = {head}
    broken: dict[int, int] = {}
    at = head
    led_to = None
    while True:
        following = links[0]
        if following == head:
            ending = Ending.CLOSED
            if head_blink != at:
                broken[head] = head_blink
            break
        if following in seen:
            ending = Ending.CYCLE
            # The Blink of the entry where the cycle closes points into the cycle. That is part of the cycle and not a
            # second defect.
            if broken.get(following) == at:
                del broken[following]
            break
        if following % pointer_size:
            ending, led_to = Ending.MISALIGNED, following
            break
        if is_other_head(following):
            ending = Ending.OTHER_HEAD
            break
        if len(entries) == bound:
            ending = Ending.BOUND
            break
        links = read(following)
        if links is None:
            ending, led_to = Ending.UNREADABLE, following
            break
        if links[1] != at:
            broken[following] = links[1]
        entries.append(following)
        seen.add(following)
        at = following
        if in_other_list(at):
            ending = Ending.JOINS
            break
    return Walk(tuple(entries), ending, at, next(iter(broken), None), led_to)
