"""Who waits on a dispatcher object: the threads whose wait blocks hang on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import facts as windows
from ..memory import Memory
from ..model import Process
from ..processes import Processes
from ..queues import walk
from ..structures import read_member
from ..symbols import KernelSymbols

# KOBJECTS EventNotificationObject and EventSynchronizationObject (ReactOS sdk/include/ndk/ketypes.h).
_EVENT_TYPES = (0, 1)

WAITER_BOUND = 64
"""How many wait blocks of one object are followed."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A thread that waits: its _ETHREAD's virtual address, TID and process."""

    thread: int
    tid: int | None
    process: Process | None

    def __str__(self) -> str:
        return f"thread {self.thread:#x} (TID {self.tid}) of {self.process or 'an unknown process'}"


class Waiters:
    """Reads the wait blocks of events."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, processes: Processes) -> None:
        self._memory = memory
        self._symbols = symbols
        self._processes = processes
        self._head = symbols.member("_KEVENT", "Header.WaitListHead.Flink")
        self._entry = symbols.member("_KWAIT_BLOCK", "WaitListEntry.Flink")

    def of_event(self, address: int) -> tuple[Waiter, ...]:
        """Return the threads that wait on the _KEVENT at a virtual address, none where it is no event.

        Each wait block has to name the event and a thread object, so that what is no event yields nothing.
        """
        kind = self._read("_KEVENT", "Header.Type", address)
        if kind not in _EVENT_TYPES or self._head is None or self._entry is None:
            return ()
        head = address + self._head.offset
        walked = walk(self._memory.links, head, pointer_size=self._memory.pointer_size, bound=WAITER_BOUND)
        return tuple(self._named(address, (entry - self._entry.offset for entry in walked.entries)))

    def _named(self, event: int, blocks: Iterator[int]) -> Iterator[Waiter]:
        for block in blocks:
            thread = self._read("_KWAIT_BLOCK", "Thread", block)
            if self._read("_KWAIT_BLOCK", "Object", block) != event or not thread:
                continue
            if self._read("_KTHREAD", "Header.Type", thread) == windows.THREAD_OBJECT:
                # _ETHREAD.ThreadsProcess to 2003 and Vista, _KTHREAD.Process since.
                owner = "Tcb.Process" if self._symbols.member("_ETHREAD", "Tcb.Process") else "ThreadsProcess"
                process = self._read("_ETHREAD", owner, thread)
                tid = self._read("_ETHREAD", "Cid.UniqueThread", thread)
                yield Waiter(thread, tid, self._processes.at(process) if process else None)

    def _read(self, structure: str, path: str, address: int) -> int | None:
        return read_member(self._memory, self._symbols, structure, path, address)
