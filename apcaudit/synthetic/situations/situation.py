"""What a situation is: a thread, who owns it, what was done to it, and the findings it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.libraries import DISPATCHER
from apcaudit.synthetic.scene import Apc, Thread

SERVICE = "BAVSvc.exe"
WOW64 = "avtray32.exe"
"""The names of a native and of a 32-bit process."""

BYSTANDER = 0x200
"""TID of a thread of System to which nothing has happened."""

TIED = 0x204
"""TID of a thread of System whose list somebody ties into another thread's."""

FORMER = "former"
"""Stands for an address in the range of the unloaded driver."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One situation.

    `expected` are the codes with their severities on the thread and its APCs together. `members` declare the thread
    (scene.Thread). `after` replays an event on the built image; it gets the image and the TID. `needs` are
    `_ETHREAD` member paths and symbols (`nt!NAME`) without which a kernel cannot have the situation; `lacks` are those
    with which it cannot, `x64` is whether only 64-bit kernels can, `no_execute` whether only those can whose page
    tables tell what may run (x64 and PAE). `scan` says that only `--scan` shows it. `why` is part of what the
    explanation says of a queue without a finding.
    """

    name: str
    meaning: str
    members: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)
    owner: str = "System"
    after: Callable[[Image, int], None] | None = None
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    x64: bool = False
    no_execute: bool = False
    scan: bool = False
    why: str | None = None

    def fits(self, kernel: Kernel) -> bool:
        """Tell whether a kernel can have the situation."""
        if self.x64 and not kernel.is_64bit:
            return False
        if self.no_execute and not (kernel.is_64bit or kernel.is_pae):
            return False
        return all(_has(kernel, each) for each in self.needs) and not any(_has(kernel, each) for each in self.lacks)

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


def _has(kernel: Kernel, name: str) -> bool:
    if name.startswith("nt!"):
        return kernel.has(name.removeprefix("nt!"))
    return kernel.layout.has("_ETHREAD", name)


#: A special and a normal kernel APC as Windows and drivers queue them, and a user APC of QueueUserAPC.
SPECIAL = Apc(kernel_routine="nt!IopCompleteRequest")
NORMAL = Apc(
    kernel_routine="avhook!AvApcKernelRoutine", normal_routine="avhook!AvApcNormalRoutine", normal_context=0x1234
)
USER = Apc(
    kernel_routine="nt!IopDeallocateApc",
    normal_routine=DISPATCHER,
    normal_context="BAVSvc+0x1100",
    # No activation context (kernelbase!QueueUserAPC).
    system_argument2=-1,
)

#: The KAPC that suspends a thread, SchedulerApc or SuspendApc, as the kernel makes it.
SUSPENDING = Apc(
    kernel_routine="nt!KiSchedulerApcNop|nt!KiSuspendNop",
    rundown_routine="nt!KiSchedulerApcRundown|nt!KiSuspendRundown",
    normal_routine="nt!KiSchedulerApc|nt!KiSuspendThread",
    environment=0,
    holder="suspend",
)
#: UpdateTebApc (24H2), as KiQueueTebUpdateApc makes it.
TEB_UPDATE = Apc(kernel_routine="nt!KiSchedulerApcNop", normal_routine="nt!KiUpdateTebApc", environment=0, holder="teb")
#: A special user APC in its first phase, on the kernel list (NtQueueApcThreadEx2, 17763 and later).
SPECIAL_USER = Apc(
    kernel_routine="nt!KeSpecialUserApcKernelRoutine",
    rundown_routine="nt!ExFreePoolWithTag",
    normal_routine="BAVSvc+0x1180",
    mode="kernel",
)

#: A running thread may have anything pending for an instant, so what else is wrong with an APC shows alone.
RUNNING: dict[str, Any] = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}

#: A program's thread, in its own wait.
PROGRAM: dict[str, Any] = {"start": 0x7FF01000, "wait_reason": "UserRequest"}

#: KiSuspendThread of 8.1 and later: the wait goes on, its blocks unhooked; State 4 is WaitSuspended.
IN_PLACE: dict[str, Any] = {**PROGRAM, "wait_state": 4, "kernel_apc_pending": True, "kernel_apcs": (SUSPENDING,)}
#: The first release of 8.1 suspends no thread in place: its KWAIT_STATE ends at WaitAborted, as that of 7 does.
IN_PLACE_SINCE = ("Tcb.SuspendedWaitMode",)
