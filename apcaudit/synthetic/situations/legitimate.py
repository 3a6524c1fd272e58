"""Situations with a legitimate explanation: the nearest neighbours of the findings, on which an audit is silent."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.libraries import TIMER
from apcaudit.synthetic.scene import Apc
from apcaudit.synthetic.situations.moved import move_to_stack
from apcaudit.synthetic.situations.situation import (
    FORMER,
    IN_PLACE,
    IN_PLACE_SINCE,
    NORMAL,
    PROGRAM,
    RUNNING,
    SERVICE,
    SPECIAL,
    SPECIAL_USER,
    SUSPENDING,
    TEB_UPDATE,
    USER,
    WOW64,
    Situation,
)

_READY = {"state": "Ready", "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)}
_TERMINATED = {"state": "Terminated", "terminated": True, "apc_queueable": False}
_SPECIAL_USER_SINCE = ("nt!KeSpecialUserApcKernelRoutine",)


def _stale_links(image: Image, tid: int) -> None:
    """Replay an APC that was queued while the thread was attached, ran, and whose memory another KAPC has now."""
    memory = image.memory
    head = image.address_of[tid] + memory.offset("_ETHREAD", "Tcb.SavedApcState.ApcListHead[0]")
    apc = image.address_of["apc:elsewhere"] + memory.offset("_KAPC", "ApcListEntry")
    memory.write_pointer(head, apc)
    memory.write_pointer(head + memory.pointer_size, apc)


ORDINARY: tuple[Situation, ...] = (
    Situation("idle-worker", "a worker thread that waits for work"),
    Situation("user-start", "a thread of a program starts in user space", PROGRAM, owner=SERVICE),
    Situation(
        "critical-region",
        "a normal kernel APC waits for the end of a critical region; KiDeliverApc has cleared KernelApcPending",
        {"kernel_apc_disable": -1, "kernel_apcs": (NORMAL,)},
    ),
    Situation(
        "normal-behind-normal",
        "a normal kernel APC is in progress and the next one waits for it",
        {"kernel_apc_in_progress": True, "kernel_apcs": (NORMAL,)},
    ),
    Situation("user-apc", "a user APC waits for an alertable wait", {**PROGRAM, "user_apcs": (USER,)}, owner=SERVICE),
    Situation(
        "user-apc-in-alertable-wait",
        "a user APC has just ended an alertable wait",
        {**PROGRAM, "user_apcs": (USER,), "alertable": True, "user_apc_pending": True, "state": "Ready"},
        owner=SERVICE,
    ),
    Situation("running-pending", "a running thread is about to be interrupted", {**RUNNING, "kernel_apcs": (SPECIAL,)}),
    Situation(
        "ready-pending",
        "a thread that was readied with a special kernel APC will run it first",
        _READY,
        why="delivered when the thread runs below APC_LEVEL",
    ),
    Situation(
        "standby-pending",
        "a thread that is next on a processor has a special kernel APC",
        {**_READY, "state": "Standby"},
    ),
    Situation(
        "preempted-pending",
        "a thread whose quantum ended has WaitIrql 1 from that, whatever it held",
        {**_READY, "wait_reason": "WrQuantumEnd", "wait_irql": 1},
    ),
    Situation(
        "running-in-guarded-region",
        "a running thread in a guarded region, nothing queued",
        {"state": "Running", "wait_reason": "Executive", "special_apc_disable": -1},
        needs=("Tcb.SpecialApcDisable",),
    ),
    Situation("stale-saved-state", "leftovers of an earlier attach in SavedApcState", {"stale_saved_state": True}),
    Situation(
        "stale-saved-links",
        "SavedApcState still leads to a KAPC that is another thread's now",
        {"saved_kernel_apcs": (), "kernel_apc_disable": -1, "kernel_apcs": (replace(NORMAL, label="elsewhere"),)},
        after=_stale_links,
    ),
    Situation("attached", "a thread attached to a process, nothing queued", {"attached_to": SERVICE}),
    Situation(
        "attached-own-user-apc",
        "a user APC for the thread's own process waits while the thread is attached to another",
        {"attached_to": SERVICE, "saved_user_apcs": (replace(USER, environment=0),)},
    ),
    Situation(
        "attached-being-suspended",
        "the suspending KAPC waits for the end of the attach, being for the original environment",
        {"attached_to": SERVICE, "saved_kernel_apcs": (SUSPENDING,), "suspend_count": 1},
    ),
    Situation(
        "suspended",
        "a suspended thread waits inside its suspending APC, a normal kernel APC in progress",
        {**PROGRAM, "wait_reason": "Suspended", "kernel_apc_in_progress": True, "suspend_count": 1},
        owner=SERVICE,
    ),
    Situation(
        "suspended-before-it-ran",
        "a thread created suspended: its suspending KAPC waits for it to start",
        {
            **PROGRAM,
            "state": "Initialized",
            "suspend_count": 1,
            "kernel_apc_pending": True,
            "kernel_apcs": (SUSPENDING,),
        },
        owner=SERVICE,
    ),
    Situation(
        "suspended-in-place",
        "a thread suspended in the wait that it was in: its KAPC stays queued and ends no wait",
        {**IN_PLACE, "suspend_count": 1},
        owner=SERVICE,
        needs=IN_PLACE_SINCE,
        why="suspended in place (WaitRegister.State 4",
    ),
    Situation(
        "frozen-in-place",
        "a thread of an application in the background, frozen in its wait",
        {**IN_PLACE, "freeze_count": 1},
        owner=SERVICE,
        needs=IN_PLACE_SINCE,
        why="frozen in place (WaitRegister.State 4",
    ),
    Situation(
        "resumed-in-place",
        "a thread resumed in its wait, which goes on: the KAPC stays queued until it wakes",
        {**IN_PLACE, "wait_state": 1},
        owner=SERVICE,
        needs=IN_PLACE_SINCE,
        why="left by a suspension that has ended",
    ),
    Situation(
        "suspended-while-running",
        "a running thread is about to run its suspending KAPC",
        {**RUNNING, "start": 0x7FF01000, "kernel_apcs": (SUSPENDING,), "suspend_count": 1},
        owner=SERVICE,
        needs=IN_PLACE_SINCE,
        why="a suspension waits for the thread to run",
    ),
    Situation(
        "teb-update",
        "an update of its TEB waits for a thread to run",
        {**PROGRAM, "kernel_apc_pending": True, "kernel_apcs": (TEB_UPDATE,)},
        owner=SERVICE,
        needs=("UpdateTebApc", "nt!KiUpdateTebApc"),
        why="a TEB update waits for the thread to run",
    ),
    Situation("terminated", "a thread that has ended", _TERMINATED),
    Situation(
        "terminated-after-its-driver",
        "a thread that has ended and that a handle keeps; its driver has gone",
        {**_TERMINATED, "start": FORMER},
    ),
    Situation(
        "terminated-in-no-module",
        "a thread that has ended, of a driver that is nowhere any more",
        {**_TERMINATED, "start": "Ghost+0x1100"},
    ),
    Situation("start-null", "a system thread that keeps something else where its start address was", {"start": 0}),
    Situation(
        "marked-for-termination",
        "a thread that is to end is still in a critical region and takes no more APCs",
        {"terminated": True, "kernel_apc_disable": -1, "apc_queueable": False},
    ),
    Situation(
        "termination-requested",
        "the request to end is noted in the _KTHREAD before the _ETHREAD is marked",
        {"termination_request": True, "apc_queueable": False},
        needs=("Tcb.TerminationApcRequest",),
    ),
    Situation(
        "termination-in-user-phase",
        "a thread that is to end when it next returns to user mode: SchedulerApc has become a user APC",
        {
            **PROGRAM,
            "termination_request": True,
            "user_apc_pending": True,
            "user_apcs": (replace(SUSPENDING, kernel_routine="nt!KiSchedulerApcTerminate"),),
        },
        owner=SERVICE,
        needs=("Tcb.TerminationApcRequest", "nt!KiSchedulerApcTerminate"),
        why="a termination is in progress",
    ),
    Situation(
        "termination-in-user-phase-to-7",
        "a thread that is to end when it next returns to user mode: PspExitNormalApc has queued itself again",
        {
            **PROGRAM,
            "terminated": True,
            "user_apc_pending": True,
            "user_apcs": (
                Apc(
                    "nt!PsExitSpecialApc", rundown_routine="nt!PspExitApcRundown", normal_routine="nt!PspExitNormalApc"
                ),
            ),
        },
        owner=SERVICE,
        needs=("nt!PsExitSpecialApc", "nt!PspExitNormalApc"),
        why="a termination is in progress",
    ),
    Situation(
        "special-user-apc-first-phase",
        "a special user APC to a thread in a critical region: its NormalRoutine is cleared before anything calls it",
        {
            **PROGRAM,
            "wait_reason": "Executive",
            "wait_mode": "kernel",
            "kernel_apc_disable": -1,
            "kernel_apcs": (SPECIAL_USER,),
        },
        {"special-user-apc": "low"},
        owner=SERVICE,
        needs=_SPECIAL_USER_SINCE,
    ),
    Situation(
        "special-user-apc-second-phase",
        "a special user APC that waits for the return to user mode",
        {**PROGRAM, "state": "Ready", "user_apcs": (replace(SPECIAL_USER, mode="user"),)},
        {"special-user-apc": "low"},
        owner=SERVICE,
        needs=_SPECIAL_USER_SINCE,
    ),
    Situation(
        "guarded-region",
        "a thread waits inside a guarded region, nothing queued",
        {"special_apc_disable": -1},
        needs=("Tcb.SpecialApcDisable",),
    ),
    Situation("at-apc-level", "a thread waits for a fast mutex, nothing queued", {"wait_irql": 1}),
    Situation(
        "driver-apc-to-user-thread",
        "a security product's driver has queued a user APC whose KernelRoutine is its own",
        {**PROGRAM, "user_apcs": (replace(USER, kernel_routine="avhook!AvApcKernelRoutine"),)},
        owner=SERVICE,
    ),
    Situation(
        "wow64-apc",
        "a user APC to a 32-bit program carries its routine encoded, which looks like a kernel address",
        {**PROGRAM, "user_apcs": (replace(USER, normal_routine="wow64:avtray32+0x1240"),)},
        owner=WOW64,
        x64=True,
    ),
    Situation(
        "timer-apc",
        "a timer of the program has expired: its APC waits for an alertable wait",
        {**PROGRAM, "user_apcs": (Apc("nt!ExpTimerApcRoutine", normal_routine=TIMER, holder="timer"),)},
        owner=SERVICE,
    ),
    Situation(
        "context-request",
        "GetThreadContext keeps its KAPC on the caller's stack and waits there",
        {**RUNNING, "kernel_apcs": (Apc("nt!PspGetSetContextSpecialApc", label="context-request"),)},
        after=lambda image, tid: move_to_stack(image, tid, "context-request"),
    ),
    Situation(
        "user-wait-in-kernel-mode",
        "a program's thread waits in the kernel for another thread's lock, in a critical region",
        {**PROGRAM, "wait_reason": "Executive", "wait_mode": "kernel", "kernel_apc_disable": -1},
        owner=SERVICE,
    ),
    Situation(
        "routine-in-exported-function",
        "a driver's routine that it exports by name",
        {**RUNNING, "kernel_apcs": (replace(SPECIAL, kernel_routine="avhook!AvApcKernelRoutine"),)},
    ),
)

#: Explained and worth seeing, as ordinary machines have them: what an audit says is low.
LOW: tuple[Situation, ...] = (
    Situation(
        "hard-error-while-attached",
        "a thread attached for a moment waits in a normal kernel APC: a hard-error pop-up",
        {"attached_to": SERVICE, "kernel_apc_in_progress": True},
        {"detach-bugcheck": "low"},
    ),
    Situation(
        "ready-attached",
        "a thread attached to a process was readied with an APC: it runs that before it can detach",
        {**_READY, "attached_to": SERVICE},
        {"detach-bugcheck": "low"},
    ),
    Situation(
        "standby-attached",
        "the same, about to be switched to",
        {**_READY, "state": "Standby", "attached_to": SERVICE},
        {"detach-bugcheck": "low"},
    ),
    Situation(
        "preempted-attached",
        "an attached thread whose quantum ended has WaitIrql 1 from that",
        {**_READY, "attached_to": SERVICE, "wait_reason": "WrQuantumEnd", "wait_irql": 1},
        {"detach-bugcheck": "low"},
    ),
    Situation(
        "page-fault-in-special-apc",
        "a special kernel APC waits for a page; another one is queued behind it",
        {"wait_reason": "WrPageIn", "wait_irql": 1, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"undelivered": "low"},
    ),
    Situation(
        "special-in-progress",
        "a special kernel APC waits for a lock; another one is queued behind it",
        {
            "wait_reason": "Executive",
            "wait_irql": 1,
            "special_apc_in_progress": True,
            "kernel_apc_pending": True,
            "kernel_apcs": (SPECIAL,),
        },
        {"undelivered": "low"},
        needs=("Tcb.ApcState.InProgressFlags",),
    ),
    Situation(
        "undelivered-critical-region",
        "a normal kernel APC has just been queued to a thread in a critical region",
        {"kernel_apc_disable": -1, "kernel_apc_pending": True, "kernel_apcs": (NORMAL,)},
        {"undelivered": "low"},
    ),
    Situation(
        "undelivered-in-progress",
        "a normal kernel APC has just been queued behind one in progress",
        {"kernel_apc_in_progress": True, "kernel_apc_pending": True, "kernel_apcs": (NORMAL,)},
        {"undelivered": "low"},
    ),
    Situation(
        "suspended-but-not",
        "SuspendCount is set and nothing holds the thread",
        {**PROGRAM, "suspend_count": 1},
        {"suspended-but-not": "low"},
        owner=SERVICE,
        needs=("Tcb.WaitRegister.State",),
    ),
)

LEGITIMATE = ORDINARY + LOW
