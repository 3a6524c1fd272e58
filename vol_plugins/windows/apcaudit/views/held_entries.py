"""Whether a LIST_ENTRY hangs on the APC list of some thread: every ring is walked once, whoever asks and how often."""

from __future__ import annotations

from ..apc_lists import ApcLists
from ..memory import Memory
from ..model import Ending
from ..queues import walk

_NOWHERE = 0
_TOO_FAR = -1
"""In the place of a list head's address: the Flinks lead to none, or on beyond what is followed."""


class HeldEntries:
    """Answers for one image, within the budget of its lists."""

    def __init__(self, memory: Memory, lists: ApcLists) -> None:
        self._memory = memory
        self._lists = lists
        self._held: set[int] = set()
        self._whole: dict[int, bool] = {}
        self._head_of: dict[int, int] = {}

    def follow(self, head: int) -> bool:
        """Walk the list with a head, unless it has been walked; tell whether all of it was followed."""
        whole = self._whole.get(head)
        if whole is None:
            budget = self._lists.budget
            walked = walk(self._memory.links, head, pointer_size=self._memory.pointer_size, bound=budget.of_a_ring)
            budget.spend(len(walked.entries))
            self._held.update(walked.entries)
            whole = self._whole[head] = walked.ending is not Ending.BOUND
        return whole

    def holds(self, entry: int) -> bool | None:
        """Tell whether a walk from the head of some thread's list comes by a LIST_ENTRY, None if that is too far off.

        The entry's own links may be stale: they only tell which head to ask.
        """
        # A list that breaks off leads to no head, and yet holds what comes before that.
        if entry in self._held or self._lists.has_met(entry):
            return True
        head = self._head_from(entry)
        if head == _NOWHERE:
            return False
        if head == _TOO_FAR:
            return None
        whole = self.follow(head)
        return True if entry in self._held else False if whole else None

    def _head_from(self, entry: int) -> int:
        """Follow the Flinks from an entry to the first list head, and remember it of every entry on the way."""
        known, links, is_head = self._head_of, self._memory.links, self._lists.is_head
        bound = self._lists.budget.of_a_ring
        path: list[int] = []
        at = entry
        while True:
            head = known.get(at)
            if head is not None:
                break
            if path and is_head(at):
                head = at
                break
            if len(path) == bound:
                head = _TOO_FAR
                break
            following = None if at % self._memory.pointer_size else links(at)
            # What leads back to where the walk has been leads to no head.
            known[at] = _NOWHERE
            path.append(at)
            if following is None:
                head = _NOWHERE
                break
            at = following[0]
        known.update(dict.fromkeys(path, head))
        self._lists.budget.spend(len(path))
        return head
