"""User APCs as they are queued, and the threads that they are queued to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apcaudit.synthetic.libraries import DISPATCHER
from apcaudit.synthetic.scene import Address, Apc, IoStackLocation, Irp
from apcaudit.synthetic.situations.situation import SPECIAL_USER

#: A thread of a program in an alertable wait, as those are that take APCs.
ALERTABLE: dict[str, Any] = {"start": "ntdll+0x1100", "wait_reason": "DelayExecution", "alertable": True}
#: The first thread of a process that was created suspended, in its suspending APC, before its first instruction.
NEWBORN: dict[str, Any] = {
    "start": "ntdll!RtlUserThreadStart|ntdll!LdrInitializeThunk",
    "instruction": "ntdll!RtlUserThreadStart|ntdll!LdrInitializeThunk",
    "wait_reason": "Suspended",
    "kernel_apc_in_progress": True,
    "suspend_count": 1,
}
#: What 7 brought: reserve objects, and a dispatcher in ntdll.dll, which a newborn process has.
SINCE_7 = ("nt!PspUserApcReserveKernelRoutine",)
SPECIAL_SINCE = ("nt!KeSpecialUserApcKernelRoutine",)


def queued(target: Address, context: Address = 0, first: Address = 0, second: Address = 0) -> Apc:
    """Declare a user APC of NtQueueApcThread, with its three arguments."""
    return Apc(
        "nt!IopDeallocateApc",
        normal_routine=target,
        normal_context=context,
        system_argument1=first,
        system_argument2=second,
        pool_tag=b"PsAp",
    )


def dispatched(target: Address, argument: Address = 0) -> Apc:
    """Declare a user APC of QueueUserAPC; it has no activation context, which is -1."""
    return queued(DISPATCHER, target, argument, -1)


def special(target: Address) -> Apc:
    """Declare a special user APC in its second phase."""
    return replace(SPECIAL_USER, normal_routine=target, mode="user", pool_tag=b"PsAp")


def reserved(target: Address, *holders: str) -> Apc:
    """Declare a user APC of NtQueueApcThreadEx with a reserve object, and who has a handle to that."""
    return Apc(
        "nt!PspUserApcReserveKernelRoutine",
        rundown_routine="nt!PspUserApcReserveRundownRoutine",
        normal_routine=target,
        holder="reserve",
        handles=holders,
    )


def armed_timer(target: Address) -> Apc:
    """Declare a timer that has not expired: its APC is ready and hangs on no list."""
    return Apc("nt!ExpTimerApcRoutine", normal_routine=target, holder="timer", linked=False, inserted=False)


def reading(target: Address, context: Address = 0) -> Irp:
    """Declare a pending read with a user APC routine."""
    return Irp((IoStackLocation("fltMgr.sys", major=3),), user_apc_routine=target, user_apc_context=context)
