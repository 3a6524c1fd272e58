"""Situations with a legitimate explanation: the nearest neighbours of the findings, on which an audit is silent."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic.situations.situation import NORMAL, RUNNING, SERVICE, SPECIAL, USER, Situation

LEGITIMATE: tuple[Situation, ...] = (
    Situation("idle-worker", "a worker thread that waits for work"),
    Situation("user-start", "a thread of a program starts in user space", {"start": 0x7FF01000}, owner=SERVICE),
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
    Situation(
        "user-apc",
        "a user APC waits for an alertable wait",
        {"user_apcs": (USER,), "start": 0x7FF01000},
        owner=SERVICE,
    ),
    Situation(
        "user-apc-in-alertable-wait",
        "a user APC has just ended an alertable wait",
        {"user_apcs": (USER,), "alertable": True, "user_apc_pending": True, "state": "Ready", "start": 0x7FF01000},
        owner=SERVICE,
    ),
    Situation("running-pending", "a running thread is about to be interrupted", {**RUNNING, "kernel_apcs": (SPECIAL,)}),
    Situation(
        "ready-pending",
        "a thread that was readied with a special kernel APC will run it first",
        {"state": "Ready", "kernel_apc_pending": True, "kernel_apcs": (SPECIAL,)},
    ),
    Situation("stale-saved-state", "leftovers of an earlier attach in SavedApcState", {"stale_saved_state": True}),
    Situation("attached", "a thread attached to a process, nothing queued", {"attached_to": SERVICE}),
    Situation(
        "attached-own-user-apc",
        "a user APC for the thread's own process waits while the thread is attached to another",
        {"attached_to": SERVICE, "saved_user_apcs": (replace(USER, environment=0),)},
    ),
    Situation(
        "attached-being-suspended",
        "the suspend APC waits for the end of the attach, being for the original environment",
        {"attached_to": SERVICE, "saved_kernel_apcs": (replace(NORMAL, environment=0),)},
    ),
    Situation(
        "suspended",
        "a suspended thread waits inside its suspend APC, a normal kernel APC in progress",
        {"wait_reason": "Suspended", "kernel_apc_in_progress": True, "suspend_count": 1, "start": 0x7FF01000},
        owner=SERVICE,
    ),
    Situation("terminated", "a thread that has ended", {"state": "Terminated", "terminated": True}),
    Situation(
        "marked-for-termination",
        "a thread that is to end is still in a critical region and takes no more APCs",
        {"terminated": True, "kernel_apc_disable": -1, "apc_queueable": False},
    ),
    Situation(
        "guarded-region",
        "a thread waits inside a guarded region, nothing queued",
        {"special_apc_disable": -1},
        needs=("Tcb.SpecialApcDisable",),
    ),
    Situation("at-apc-level", "a thread waits for a fast mutex, nothing queued", {"wait_irql": 1}),
    Situation(
        "not-started", "a thread being created takes no APCs yet", {"state": "Initialized", "apc_queueable": False}
    ),
    Situation(
        "driver-apc-to-user-thread",
        "a security product's driver has queued a user APC whose KernelRoutine is its own",
        {"user_apcs": (replace(USER, kernel_routine="avhook!AvApcKernelRoutine"),), "start": 0x7FF01000},
        owner=SERVICE,
    ),
)
