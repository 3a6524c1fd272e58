"""What a situation is: a thread, who owns it, what was done to it, and the findings it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Thread

SERVICE = "BAVSvc.exe"
BYSTANDER = 0x200
"""TID of a thread of System to which nothing has happened."""

FORMER = "former"
"""Stands for an address in the range of the unloaded driver."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One situation.

    `expected` are the codes with their severities on the thread and its APCs together. `members` declare the thread
    (scene.Thread). `after` replays an event on the built image; it gets the image and the TID. `needs` are
    `_ETHREAD` member paths without which a kernel cannot have the situation. `scan` says that only `--scan` shows it.
    """

    name: str
    meaning: str
    members: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)
    owner: str = "System"
    after: Callable[[Image, int], None] | None = None
    needs: tuple[str, ...] = ()
    scan: bool = False

    def event(self, tid: int) -> Callable[[Image], None]:
        """Bind what was done to the thread to its TID."""
        after = self.after
        return lambda image: None if after is None else after(image, tid)

    def thread(self, tid: int, former: int) -> Thread:
        """Declare the thread with its TID, and an address of the unloaded driver for FORMER."""

        def placed(value: Any) -> Any:
            if value == FORMER:
                return former + 0x500
            if isinstance(value, tuple) and value and isinstance(value[0], Apc):
                names = ("kernel_routine", "rundown_routine", "normal_routine")
                return tuple(replace(apc, **{n: placed(getattr(apc, n)) for n in names}) for apc in value)
            return value

        return Thread(tid=tid, **{name: placed(value) for name, value in self.members.items()})


#: A special and a normal kernel APC as Windows and drivers queue them, and a user APC of NtQueueApcThread.
SPECIAL = Apc(kernel_routine="nt!IopCompleteRequest")
NORMAL = Apc(
    kernel_routine="avhook!AvApcKernelRoutine", normal_routine="avhook!AvApcNormalRoutine", normal_context=0x1234
)
USER = Apc(kernel_routine="nt!IopDeallocateApc", normal_routine=0x7FF10000)

#: A running thread may have anything pending for an instant, so what else is wrong with an APC shows alone.
RUNNING = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
