"""Situations that are findings about a thread."""

from __future__ import annotations

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc
from apcaudit.synthetic.situations.situation import FORMER, NORMAL, RUNNING, SERVICE, SPECIAL, USER, Situation

_GUARDED = ("Tcb.SpecialApcDisable",)


def _enlarge(image: Image, _: int) -> None:
    """Replay a driver that makes code beside another driver look like that driver's: its SizeOfImage grows."""
    kldr, ldr = "_KLDR_DATA_TABLE_ENTRY", "_LDR_DATA_TABLE_ENTRY"
    structure = kldr if image.memory.layout.has_type(kldr) else ldr
    image.memory.write(image.address_of["module:wide.sys"], structure, "SizeOfImage", 0xB000)


OF_THREADS: tuple[Situation, ...] = (
    Situation(
        "detach-running",
        "the seed: attached, running, a special kernel APC queued and signalled",
        {**RUNNING, "attached_to": SERVICE, "kernel_apcs": (SPECIAL,), "start": "Bfilter!ScUnInitExcludePath+0x30"},
        {"detach-bugcheck": "critical"},
    ),
    Situation(
        "detach-at-apc-level",
        "attached, and waiting with a fast mutex held",
        {"attached_to": SERVICE, "wait_irql": 1, "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
        {"detach-bugcheck": "critical", "undelivered": "high"},
    ),
    Situation(
        "detach-in-progress",
        "attached inside a normal kernel APC",
        {"attached_to": SERVICE, "kernel_apc_in_progress": True},
        {"detach-bugcheck": "critical"},
    ),
    Situation(
        "detach-user-apc",
        "attached, and a user APC came for the process attached to",
        {"attached_to": SERVICE, "user_apcs": (USER,)},
        {"detach-bugcheck": "critical"},
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
        {"detach-bugcheck": "critical", "undelivered": "high"},
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
