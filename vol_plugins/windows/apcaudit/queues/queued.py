"""The second stage: from a thread that was found to one with its APC lists walked, which the checks take."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from ..kernel import Kernel
from ..members import PrefilterMembers, ThreadMembers
from ..model import Backing, FoundThread, Process, QueuedThread
from .apc_lists import ApcLists
from .crash import Crash
from .off_list import OffList
from .placement import PlacementFinder

if TYPE_CHECKING:
    from .nested_attach import NestedAttach

STARTS_KEPT = 1 << 16
"""For how many different starts of threads the answer of is_fine is remembered."""

_FINE = (None, Backing.MODULE)


class Starts:
    """Finds what holds the start addresses of system threads, and whether anything is wrong with it."""

    def __init__(self, kernel: Kernel) -> None:
        self._drivers = kernel.drivers
        self._processes = kernel.processes
        self._fine: dict[tuple[int | None, int | None, int | None], bool] = {}

    def backing(self, members: PrefilterMembers | ThreadMembers) -> Backing | None:
        """Return what holds a system thread's start address, None for other threads."""
        start = members.start_address
        if start is None or not (members.system_thread or (start and self._processes.is_system(members.process))):
            return None
        return self._drivers.backing(start)

    def is_fine(self, members: PrefilterMembers | ThreadMembers) -> bool:
        """Tell whether nothing is wrong with a thread's start address."""
        # Many threads start at the same address.
        key = members.start_address, members.system_thread, members.process
        fine = self._fine.get(key)
        if fine is None:
            if len(self._fine) >= STARTS_KEPT:
                self._fine.clear()
            fine = self._fine[key] = self._is_fine(members)
        return fine

    def _is_fine(self, members: PrefilterMembers | ThreadMembers) -> bool:
        backing, start = self.backing(members), members.start_address
        if backing is None or start is None or backing not in _FINE:
            return backing in _FINE
        return self._drivers.conflict_at(start) is None and self._drivers.not_code(start) is None


class Queues:
    """Makes threads with walked lists of those that were found.

    `stack_pointers` has the stack pointers that a crash saved, by _ETHREAD of the running thread.
    """

    def __init__(
        self,
        kernel: Kernel,
        starts: Starts,
        lists: ApcLists,
        off_list: OffList,
        crash: Crash,
        placements: PlacementFinder,
        stack_pointers: Mapping[int, int],
    ) -> None:
        self._kernel = kernel
        self._drivers = kernel.drivers
        self._processes = kernel.processes
        self._starts = starts
        self._lists = lists
        self._off_list = off_list
        self._crash = crash
        self._placements = placements
        self._stack_pointers = stack_pointers

    @cached_property
    def _nested(self) -> NestedAttach:
        # Loaded for the first thread that is attached, which many images do not have.
        from .nested_attach import NestedAttach

        return NestedAttach(self._kernel, self._lists, self._stack_pointers)

    def is_empty(self, found: FoundThread) -> bool:
        """Tell whether nothing is queued to a thread, without reading more of the image."""
        return self._lists.are_empty(found.address, found.members) and not self._off_list.names(found.address)

    def read(self, found: FoundThread) -> QueuedThread:
        """Walk the lists of a thread, and add everything else that the checks need."""
        members = found.members
        backing, address = self._starts.backing(members), members.start_address
        start = conflict = None
        if address is not None and backing is not None:
            if backing not in _FINE or self._drivers.not_code(address) is not None:
                start = self._placements.add_region(self._drivers.routine(address), found)
            conflict = self._drivers.conflict_at(address)
        queues = () if self.is_empty(found) else self._lists.read(found)
        nested = self._nested.find(found) if members.apc_state_index == 1 and not found.idle else None
        if self._off_list.names(found.address):
            off_list = self._off_list.find(found, queues if nested is None else (*queues, *nested.queues))
            queues = queues if off_list is None else (*queues, off_list)
        queues = self._crash.add_bugcheck_apcs(found, queues)
        return QueuedThread.from_found(
            found,
            attached=self._attached(found),
            queues=queues if nested is None else (*queues, *nested.queues),
            start_backing=backing,
            start=start,
            start_conflict=conflict,
            nested_attach=None if nested is None else nested.text,
            lost=self._lists.find_lost(found),
        )

    def _attached(self, found: FoundThread) -> Process | None:
        """Return the process that a thread is attached to, None where it is in its own."""
        members = found.members
        owner = members.process if members.process is not None else found.owner and found.owner.address
        if not members.apc_process or members.apc_process == owner:
            return None
        return self._processes.read(members.apc_process)
