"""The stage between walking a thread's lists and checking it: what its user APCs would run is added to them."""

from __future__ import annotations

from dataclasses import replace

from ..kernel import Kernel
from ..model import Apc, Process, Queue, Thread
from .resolve import Resolver
from .spaces import UserSpaces

TARGETS_BOUND = 1 << 15
"""How many user APCs of an image are resolved."""

NAMED_BOUND = 8
"""How many processes notes name whose user space is not known."""

_NO_PEB = "whether it has run in user mode cannot be read"
_BEYOND = f"only {TARGETS_BOUND} user APCs are resolved: what the others would run is not known"


class UserStage:
    """Adds targets to the user APCs of threads; `spaces` are the user spaces that it looks into."""

    def __init__(self, kernel: Kernel) -> None:
        self.spaces = UserSpaces(kernel)
        self._kernel = kernel
        self._resolver = Resolver(self.spaces)
        self._left = TARGETS_BOUND
        self._unknown: dict[str, list[str]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the user spaces of some processes are not known; complete once all threads have been given."""
        named = [
            f"of what user APCs in {name} would run not all is known: {'; '.join(why)}"
            for name, why in self._unknown.items()
        ]
        if len(named) > NAMED_BOUND:
            named[NAMED_BOUND:] = [
                f"what user APCs in {len(named) - NAMED_BOUND} more processes would run is not known"
            ]
        return (*named, _BEYOND) if self._left < 0 else tuple(named)

    def add(self, thread: Thread) -> Thread:
        """Return the thread with the targets of its user APCs."""
        queues = tuple(self._queue(queue, thread) for queue in thread.queues)
        return replace(thread, queues=queues, first=self._is_first(thread))

    def _queue(self, queue: Queue, thread: Thread) -> Queue:
        if not any(apc.is_user for apc in queue.apcs):
            return queue
        return replace(queue, apcs=tuple(self.resolve(apc, thread) if apc.is_user else apc for apc in queue.apcs))

    def resolve(self, apc: Apc, thread: Thread) -> Apc:
        """Return a user APC with its target."""
        process = thread.process_of(apc)
        # Of a third state nothing says which process it belongs to.
        if process is None or apc.nested or self._kernel.memory.partial:
            return apc
        self._left -= 1
        if self._left < 0:
            return apc
        target = self._resolver.resolve(apc, process)
        if target is not None and (process.wow64 or not target.encoded):
            for place in target.places:
                self._tell(process, place.why)
        return replace(apc, target=target)

    def _tell(self, process: Process, why: str | None) -> None:
        """Remember what could not be read of a process's user space."""
        # System and its like have none, and nothing is missing there.
        if why is None or self.spaces.of(process.address).peb == 0:
            return
        known = self._unknown.setdefault(str(process), [])
        if why not in known and len(known) < NAMED_BOUND:
            known.append(why)

    def _is_first(self, thread: Thread) -> bool | None:
        """Tell whether a thread is the only one of a process in which nothing has run in user mode yet."""
        members, owner = thread.members, thread.owner
        flink, blink = members.thread_list_flink, members.thread_list_blink
        if owner is None or flink is None or blink is None or self._kernel.memory.partial:
            return None
        if not flink == blink == owner.address + self._kernel.processes.thread_list_head:
            return False
        has_run = self.spaces.of(owner.address).has_run()
        if has_run is None:
            self._tell(owner, _NO_PEB)
        return None if has_run is None else not has_run
