"""Situations that are findings about a thread."""

from __future__ import annotations

from collections.abc import Callable

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc
from apcaudit.synthetic.situations.situation import (
    FORMER,
    IN_PLACE,
    IN_PLACE_SINCE,
    NORMAL,
    PROGRAM,
    RUNNING,
    SERVICE,
    SPECIAL,
    SUSPENDING,
    TEB_UPDATE,
    USER,
    Situation,
)

_GUARDED = ("Tcb.SpecialApcDisable",)


def _enlarge(image: Image, _: int) -> None:
    """Replay a driver that makes code beside another driver look like that driver's: its SizeOfImage grows."""
    kldr, ldr = "_KLDR_DATA_TABLE_ENTRY", "_LDR_DATA_TABLE_ENTRY"
    structure = kldr if image.memory.layout.has_type(kldr) else ldr
    image.memory.write(image.address_of["module:wide.sys"], structure, "SizeOfImage", 0xB000)


def _queue_for_left_environment(image: Image, tid: int) -> None:
    """Replay KiInsertQueueApc of an APC with ApcStateIndex 1 on a thread that is not attached."""
    memory = image.memory
    body = image.address_of[tid]
    head = body + memory.offset("_ETHREAD", "Tcb.SavedApcState.ApcListHead[0]")
    size = memory.size("_KAPC")
    # In a page of its own at the driver that queued it.
    apc = image.resolve("avhook+0x5800")
    for path, value in (
        ("Type", 0x12),
        ("Size", size),
        ("Thread", body),
        ("KernelRoutine", image.resolve("avhook!AvApcKernelRoutine")),
        ("ApcStateIndex", 1),
        ("Inserted", 1),
    ):
        memory.write(apc, "_KAPC", path, value)
    memory.link(head, [apc + memory.offset("_KAPC", "ApcListEntry")])


def _alter(member: str, value: int | str) -> Callable[[Image, int], None]:
    """Replay a write to a member of the KAPC that suspends a thread."""

    def after(image: Image, tid: int) -> None:
        memory = image.memory
        name = "SchedulerApc" if memory.has("_ETHREAD", "Tcb.SchedulerApc") else "SuspendApc"
        number = image.resolve(value)
        memory.write(image.address_of[tid], "_ETHREAD", f"Tcb.{name}.{member}", number)

    return after


OF_THREADS: tuple[Situation, ...] = (
    Situation(
        "detach-running",
        "the seed: attached, running, a special kernel APC queued and signalled",
        {**RUNNING, "attached_to": SERVICE, "kernel_apcs": (SPECIAL,), "start": "Bfilter!ScUnInitExcludePath+0x30"},
        {"detach-bugcheck": "high"},
    ),
    Situation(
        "detach-at-apc-level",
        "attached, and waiting with a fast mutex held",
        {"attached_to": SERVICE, "wait_irql": 1, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"detach-bugcheck": "high", "undelivered": "high"},
    ),
    Situation(
        "detach-running-in-progress",
        "running, attached, inside a normal kernel APC",
        {"state": "Running", "wait_reason": "Executive", "attached_to": SERVICE, "kernel_apc_in_progress": True},
        {"detach-bugcheck": "high"},
    ),
    Situation(
        "detach-not-drained",
        "attached and waiting at IRQL 0, an APC linked in without a signal: nothing is drained before the detach",
        {"attached_to": SERVICE, "kernel_apcs": (SPECIAL,)},
        {"detach-bugcheck": "high", "stuck-deliverable": "high", "pending-lost": "medium"},
    ),
    Situation(
        "detach-user-apc",
        "attached, and a user APC came for the process attached to",
        {"attached_to": SERVICE, "user_apcs": (USER,)},
        {"detach-bugcheck": "high"},
    ),
    Situation(
        "detach-drained",
        "attached and waiting at IRQL 0: the drain before the detach would deliver it",
        {"attached_to": SERVICE, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"detach-bugcheck": "low", "stuck-deliverable": "high"},
    ),
    Situation(
        "detach-critical-region",
        "attached in a critical region with a normal kernel APC queued",
        {"attached_to": SERVICE, "kernel_apc_disable": -1, "kernel_apc_pending": True, "kernel_apcs": (NORMAL,)},
        {"detach-bugcheck": "high", "undelivered": "low"},
    ),
    Situation(
        "undelivered-irql",
        "waiting with a fast mutex held",
        {"wait_irql": 1, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"undelivered": "medium"},
    ),
    Situation(
        "undelivered-guarded-region",
        "waiting inside a guarded region",
        {"special_apc_disable": -1, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"undelivered": "medium"},
        needs=_GUARDED,
    ),
    Situation(
        "stuck-beside-own",
        "suspended in place, and a foreign APC is queued behind the thread's own, which should have ended the wait",
        {**IN_PLACE, "suspend_count": 1, "kernel_apcs": (SUSPENDING, NORMAL)},
        {"stuck-deliverable": "high"},
        owner=SERVICE,
        needs=IN_PLACE_SINCE,
    ),
    Situation(
        "stuck-behind-teb-update",
        "an update of the TEB waits, and a foreign APC should have ended the wait",
        {**PROGRAM, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL, TEB_UPDATE)},
        {"stuck-deliverable": "high"},
        owner=SERVICE,
        needs=("UpdateTebApc", "nt!KiUpdateTebApc"),
    ),
    Situation(
        "stuck-special",
        "a special kernel APC is queued to a waiting thread and signalled, and the wait goes on",
        {"kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"stuck-deliverable": "high"},
    ),
    Situation(
        "stuck-normal",
        "a normal kernel APC is queued to a waiting thread with kernel APCs enabled",
        {"kernel_apc_pending": True, "kernel_apcs": (NORMAL,)},
        {"stuck-deliverable": "high"},
    ),
    Situation(
        "pending-lost",
        "a special kernel APC was linked in behind the kernel's back",
        {"kernel_apcs": (SPECIAL,)},
        {"stuck-deliverable": "high", "pending-lost": "medium"},
    ),
    Situation(
        "pending-empty", "the APC that was signalled is gone", {"kernel_apc_pending": True}, {"pending-empty": "medium"}
    ),
    Situation(
        "exit-queue",
        "ended with a kernel APC queued",
        {"state": "Terminated", "terminated": True, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"exit-bugcheck": "high"},
    ),
    Situation(
        "exit-critical-region",
        "ended inside a critical region",
        {"state": "Terminated", "terminated": True, "kernel_apc_disable": -1},
        {"exit-bugcheck": "high"},
    ),
    Situation(
        "exit-guarded-region",
        "ended inside a guarded region",
        {"state": "Terminated", "terminated": True, "special_apc_disable": -1},
        {"exit-bugcheck": "high"},
        needs=_GUARDED,
    ),
    Situation(
        "index-out-of-range",
        "ApcStateIndex is neither of the two",
        {"members": {"Tcb.ApcStateIndex": 2}},
        {"state-mismatch": "medium"},
    ),
    Situation(
        "saved-process-at-index-0",
        "SavedApcState.Process is set in a thread that is not attached",
        {},
        {"state-mismatch": "medium"},
        after=lambda image, tid: image.memory.write(
            image.address_of[tid], "_ETHREAD", "Tcb.SavedApcState.Process", image.address_of["process:4"]
        ),
    ),
    Situation(
        "foreign-process-at-index-0",
        "ApcState.Process is another process in a thread that is not attached",
        {},
        {"state-mismatch": "medium"},
        after=lambda image, tid: image.memory.write(
            image.address_of[tid], "_ETHREAD", "Tcb.ApcState.Process", image.address_of["process:1204"]
        ),
    ),
    Situation(
        "saved-process-not-owner",
        "an attached thread would return to a process that is not its own",
        {"attached_to": SERVICE},
        {"state-mismatch": "medium"},
        after=lambda image, tid: image.memory.write(
            image.address_of[tid], "_ETHREAD", "Tcb.SavedApcState.Process", image.address_of["process:1204"]
        ),
    ),
    Situation(
        "not-queueable", "a live thread that takes no APCs", {"apc_queueable": False}, {"not-queueable": "medium"}
    ),
    Situation(
        "queueable-before-start",
        "a thread being created refuses APCs, though the flag is set when it is initialized",
        {"state": "Initialized", "apc_queueable": False},
        {"not-queueable": "medium"},
    ),
    Situation(
        "lost-apc",
        "an APC was queued for the attached environment after the thread had left it",
        {},
        {"lost-apc": "high"},
        needs=("Tcb.ApcStatePointer",),
        after=_queue_for_left_environment,
    ),
    Situation(
        "suspending-apc-altered",
        "the KAPC that suspends the thread would run a driver's routine",
        {**PROGRAM},
        {"embedded-apc-altered": "high"},
        owner=SERVICE,
        after=_alter("KernelRoutine", "avhook!AvApcKernelRoutine"),
    ),
    Situation(
        "suspending-apc-in-pool",
        "the NormalRoutine of the KAPC that suspends the thread lies in no module",
        {**PROGRAM},
        {"embedded-apc-altered": "high"},
        owner=SERVICE,
        after=_alter("NormalRoutine", "Ghost+0x1200"),
    ),
    Situation(
        "suspending-apc-unsuspendable",
        "the KAPC that suspends the thread has lost its Type: KeInsertQueueApc takes it no more",
        {**PROGRAM},
        {"embedded-apc-altered": "high"},
        owner=SERVICE,
        after=_alter("Type", 0),
    ),
    Situation(
        "apc-disabled-in-user-wait",
        "a program's thread waits in user mode with kernel APCs disabled",
        {**PROGRAM, "kernel_apc_disable": -1},
        {"apc-disabled-in-user-wait": "medium"},
        owner=SERVICE,
    ),
    Situation(
        "apcs-disabled-in-user-wait",
        "a program's thread waits in user mode with all APCs disabled",
        {**PROGRAM, "wait_reason": "WrQueue", "special_apc_disable": -1},
        {"apc-disabled-in-user-wait": "medium"},
        owner=SERVICE,
        needs=_GUARDED,
    ),
    Situation(
        "start-in-data",
        "a system thread begins in a driver's data",
        {"start": "avhook+0x6000"},
        {"routine-not-code": "high"},
    ),
    Situation(
        "start-within-function",
        "a system thread begins in the middle of a driver's function",
        {"start": "avhook!AvApcKernelRoutine+0x10"},
        {"routine-not-code": "medium"},
        x64=True,
    ),
    Situation(
        "orphan-start", "a system thread of a driver that hides", {"start": "Ghost+0x1100"}, {"orphan-start": "high"}
    ),
    Situation(
        "orphan-start-unmarked",
        "a thread of System of a driver that hides, its SystemThread flag cleared",
        {"start": "Ghost+0x1100", "system": False},
        {"orphan-start": "high"},
    ),
    Situation(
        "unloaded-start",
        "a system thread of a driver that is gone",
        {"start": FORMER},
        {"orphan-start": "high", "unloaded-start": "high"},
    ),
    Situation(
        "module-conflict",
        "a system thread starts behind a driver's image, where only the enlarged entry of its module list claims",
        {"start": "wide+0x9800"},
        {"module-conflict": "medium", "orphan-start": "high"},
        after=_enlarge,
    ),
    Situation("hidden", "a thread taken off its process's list", {"in_thread_list": False}, {"hidden-thread": "high"}),
    Situation(
        "hidden-deep",
        "a thread taken off its process's list and out of the CID table",
        {"in_thread_list": False, "in_cid_table": False},
        {"hidden-thread": "high"},
        scan=True,
    ),
    Situation(
        "off-list",
        "an APC that took itself off the list, as the public kernel exploits' does",
        {"user_apcs": (Apc(kernel_routine="Ghost+0x1200", normal_routine="Ghost+0x1300", linked=False),)},
        {
            "off-list-apc": "high",
            "routine-unbacked": "high",
            "kernel-normal-in-user-apc": "high",
        },
        scan=True,
    ),
)
