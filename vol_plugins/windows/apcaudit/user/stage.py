"""The stage between walking a thread's lists and checking it: what its user APCs would run, in their processes."""

from __future__ import annotations

from ..kernel import Kernel
from ..model import Apc, ApcKey, Process, QueuedThread
from ..targets.target import Target
from .resolve import Resolver
from .spaces import UserSpaces

TARGETS_BOUND = 1 << 15
"""How many user APCs of an image are resolved."""

NAMED_BOUND = 8
"""How many processes notes name whose user space is not known."""

_NO_PEB = "whether it has run in user mode cannot be read"
_BEYOND = f"only {TARGETS_BOUND} user APCs are resolved: what the others would run is not known"


class UserStage:
    """Finds what the user APCs of threads would run; `spaces` are the user spaces that it looks into."""

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

    def targets(self, thread: QueuedThread) -> dict[ApcKey, Target]:
        """Return what a thread's user APCs would run, as far as that is known."""
        apcs = [apc for queue in thread.queues for apc in queue.apcs if apc.is_user]
        resolved = {apc.key: self.target(apc, thread) for apc in apcs}
        return {key: target for key, target in resolved.items() if target is not None}

    def target(self, apc: Apc, thread: QueuedThread) -> Target | None:
        """Return what a user APC would run, None where that is not known."""
        process = thread.process_of(apc)
        # Of a third state nothing says which process it belongs to.
        if process is None or apc.nested or self._kernel.memory.partial:
            return None
        self._left -= 1
        if self._left < 0:
            return None
        target = self._resolver.resolve(apc, process)
        if target is not None and (process.wow64 or not target.encoded):
            for place in target.places:
                self._tell(process, place.why)
        return target

    def _tell(self, process: Process, why: str | None) -> None:
        """Remember what could not be read of a process's user space."""
        # System and its like have none, and nothing is missing there.
        if why is None or self.spaces.of(process.address).peb == 0:
            return
        known = self._unknown.setdefault(str(process), [])
        if why not in known and len(known) < NAMED_BOUND:
            known.append(why)

    def is_first(self, thread: QueuedThread) -> bool | None:
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
