"""What is known of a thread that a view of the threads misses: the evidence for hiding or for smear."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Neighbours(Enum):
    """How a thread's ThreadListEntry stands to the entries that it points to."""

    PASSED_BY = "the entries that its ThreadListEntry names link past it: it was unlinked"
    SELF = "its ThreadListEntry points to itself: it was unlinked and closed, or never linked in"
    EMPTY = "its ThreadListEntry is null"
    LINKED = "its neighbours still link to it: it hangs on a ring that its process's list does not reach"
    HALF = "one neighbour links to it and the other past it: the list was changing, or is damaged"
    UNREADABLE = "what its ThreadListEntry points to cannot be read"


@dataclass(frozen=True, slots=True)
class Absence:
    """A thread that one view holds and another one, though readable to its end, does not.

    `missed_by` names the view that misses it: `list` or `cid`. `neighbours` is None where the thread is on
    its list. `created_late` is whether it began when the image was already being taken (None: unknown), and
    `stopped` whether the machine stood still, so that nothing in the image can be smeared.
    """

    missed_by: str
    neighbours: Neighbours | None = None
    created_late: bool | None = None
    stopped: bool = False

    @property
    def smear(self) -> bool:
        """Whether the time between two reads of a running machine explains the absence."""
        return bool(self.created_late) and not self.stopped


def neighbours_of(entry: int, links: tuple[int, int], around: tuple[tuple[int, int] | None, ...]) -> Neighbours:
    """Judge a LIST_ENTRY by what stands beside it.

    Args:
        entry: virtual address of the LIST_ENTRY.
        links: its (Flink, Blink).
        around: (Flink, Blink) of the entry that Flink names and of the one that Blink names; None is unreadable.
    """
    if links == (0, 0):
        return Neighbours.EMPTY
    if links == (entry, entry):
        return Neighbours.SELF
    following, before = around
    if following is None or before is None:
        return Neighbours.UNREADABLE
    linked = following[1] == entry, before[0] == entry
    if all(linked):
        return Neighbours.LINKED
    return Neighbours.HALF if any(linked) else Neighbours.PASSED_BY
