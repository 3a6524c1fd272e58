"""The findings about APCs that should have been delivered or are not there, and their legitimate neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_thread
from volatility3.plugins.windows.apcaudit.model import BugCheck, Ending, Facts, Queue, QueueName, Thread

from tests.situations_pure import (
    IN_DRIVER,
    KERNEL_HEAD,
    NO_OP,
    ROUTINES,
    RUNNING,
    SAVED_KERNEL_HEAD,
    TERMINATED,
    THREAD,
    TO_WINDOWS_7,
    TO_WINDOWS_XP,
    WINDOWS_7,
    WINDOWS_10,
    WINDOWS_11_24H2,
    WINDOWS_XP,
    case,
    code,
    normal,
    scheduler,
    severities,
    special,
    teb_update,
    thread,
    user,
)

# KiSuspendThread of 8.1 and later: the wait goes on, its blocks unhooked, WaitRegister.State WaitSuspended.
IN_PLACE: dict[str, Any] = {"wait_state": 4, "suspend_count": 1, "suspend_apc_inserted": 1}
USED_TEB: dict[str, Any] = {
    "teb_apc_type": 18,
    "teb_apc_size": 0x58,
    "teb_apc_thread": THREAD,
    "teb_apc_kernel": NO_OP,
    "teb_apc_rundown": 0,
    "teb_apc_normal": ROUTINES["KiUpdateTebApc"],
}

STUCK = [
    case(
        "waiting, a special APC that nothing holds back",
        thread(kernel=[special()], kernel_apc_pending=1),
        {"stuck-deliverable": "high"},
    ),
    case(
        "waiting, a normal APC, kernel APCs enabled",
        thread(kernel=[normal()], kernel_apc_pending=1),
        {"stuck-deliverable": "high"},
    ),
    case(
        "a critical region does not hold back a special APC",
        thread(kernel=[special()], kernel_apc_pending=1, kernel_apc_disable=-1),
        {"stuck-deliverable": "high"},
    ),
    case(
        "a normal APC in progress does not hold back a special one",
        thread(kernel=[special()], kernel_apc_pending=1, kernel_apc_in_progress=1),
        {"stuck-deliverable": "high"},
    ),
    case(
        "waiting at a gate, as for a guarded mutex of 7",
        thread(kernel=[special()], kernel_apc_pending=1, state=8, **TO_WINDOWS_7),
        {"stuck-deliverable": "high"},
        WINDOWS_7,
    ),
    case(
        "XP knows neither SpecialApcDisable nor SpecialApcInProgress",
        thread(kernel=[special()], kernel_apc_pending=1, **TO_WINDOWS_XP),
        {"stuck-deliverable": "high"},
        WINDOWS_XP,
    ),
    case(
        "ApcMode of the head is that of the user: KiDeliverApc looks at NormalRoutine alone",
        thread(kernel=[normal(apc_mode=1)], kernel_apc_pending=1),
        {"stuck-deliverable": "high"},
    ),
    case(
        "linked in and never signalled",
        thread(kernel=[special()]),
        {"stuck-deliverable": "high", "pending-lost": "medium"},
    ),
    case("linked in and never signalled, normal", thread(kernel=[normal()]), {"stuck-deliverable": "high"}),
    case(
        "suspended in place with a foreign special APC",
        thread(kernel=[special(), scheduler()], kernel_apc_pending=1, **IN_PLACE),
        {"stuck-deliverable": "high"},
    ),
    case(
        "suspended in place with a foreign normal APC before the own one",
        thread(kernel=[normal(), scheduler()], kernel_apc_pending=1, **IN_PLACE),
        {"stuck-deliverable": "high"},
    ),
    case(
        "suspended in place with a foreign normal APC behind the own one",
        thread(kernel=[scheduler(), normal()], kernel_apc_pending=1, **IN_PLACE),
        {"stuck-deliverable": "high"},
    ),
    case(
        "SchedulerApc with a NormalRoutine that is not the kernel's is not the own one",
        thread(kernel=[scheduler(normal_routine=IN_DRIVER)], kernel_apc_pending=1, **IN_PLACE),
        {"stuck-deliverable": "high"},
    ),
    case(
        "KiSchedulerApc in a KAPC that is not the thread's member",
        thread(kernel=[scheduler(member=None, address=0xFFFF8A0000099008)], kernel_apc_pending=1),
        {"stuck-deliverable": "high"},
    ),
    case("suspended in place", thread(kernel=[scheduler()], kernel_apc_pending=1, **IN_PLACE), {}),
    case(
        "suspended in place, the linker's other name for the routines' address",
        thread(
            kernel=[scheduler(kernel_routine=code(NO_OP, text="nt!guard_check_icall_nop", module="nt"))],
            kernel_apc_pending=1,
            **IN_PLACE,
        ),
        {},
    ),
    case(
        "frozen in place, as a background application",
        thread(kernel=[scheduler()], kernel_apc_pending=1, **{**IN_PLACE, "suspend_count": 0, "freeze_count": 1}),
        {},
    ),
    case(
        "resumed in place and not yet run: the KAPC stays",
        thread(kernel=[scheduler()], kernel_apc_pending=1, **{**IN_PLACE, "suspend_count": 0, "wait_state": 1}),
        {},
    ),
    case(
        "a TEB update waits for the thread to run (24H2)",
        thread(kernel=[teb_update()], kernel_apc_pending=1, **USED_TEB),
        {},
        WINDOWS_11_24H2,
    ),
    case("a special APC in progress", thread(kernel=[special()], special_apc_in_progress=1), {}),
    case("not signalled, in a guarded region", thread(kernel=[special()], special_apc_disable=-1), {}),
    case("not signalled, waiting at APC_LEVEL", thread(kernel=[special()], wait_irql=1), {}),
    case("not signalled, running", thread(kernel=[special()], **RUNNING), {}),
    case("its wait is over, its process is swapped in", thread(kernel=[special()], kernel_apc_pending=1, state=9), {}),
    case("its wait is over, it is ready", thread(kernel=[normal()], kernel_apc_pending=1, state=7), {}),
    case("a user APC does not end a wait that is not alertable", thread(user=[user()]), {}),
    case("State unreadable", thread(kernel=[special()], kernel_apc_pending=1, state=None), {}),
    case("WaitIrql unreadable", thread(kernel=[special()], wait_irql=None), {}),
    case(
        "SpecialApcDisable unreadable on a Windows that has it",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=None),
        {},
    ),
    case(
        "KernelApcDisable unreadable, a normal APC next",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=None),
        {},
    ),
    case("the head's NormalRoutine unreadable", thread(kernel=[special(normal_routine=None)]), {}),
]

PENDING = [
    case("signalled, nothing queued", thread(kernel_apc_pending=1), {"pending-empty": "medium"}),
    case("signalled, nothing queued, ready", thread(kernel_apc_pending=1, state=1), {"pending-empty": "medium"}),
    case(
        "signalled, only a user APC queued",
        thread(user=[user()], kernel_apc_pending=1),
        {"pending-empty": "medium"},
    ),
    case("signalled, nothing queued, running", thread(kernel_apc_pending=1, **RUNNING), {}),
    case("signalled, nothing queued, terminated", thread(kernel_apc_pending=1, **TERMINATED), {}),
    case("signalled, nothing queued, State unreadable", thread(kernel_apc_pending=1, state=None), {}),
    case("signalled, only a user APC pending", thread(user=[user()], user_apc_pending=1), {}),
    case("signalled, a minidump does not hold the list", thread(kernel_apc_pending=1, apc_kernel_flink=None), {}),
    case(
        "signalled, the list unreadable",
        thread(
            kernel_apc_pending=1,
            apc_kernel_flink=None,
            damaged=[Queue(QueueName.KERNEL, KERNEL_HEAD, (), Ending.UNREADABLE, KERNEL_HEAD)],
        ),
        {"list-broken": "high"},
    ),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), [*STUCK, *PENDING])
def test_findings_of_a_thread(subject: Thread, facts: Facts, expected: dict[str, str]) -> None:
    """A thread carries exactly the findings whose condition holds, each with its severity."""
    assert severities(check_thread(subject, facts)) == expected


def test_one_stuck_thread_of_a_live_image() -> None:
    """One stuck thread alone may be the instant of its queuing: medium in a live image, high in a stopped one."""
    alone = thread(kernel=[special()], kernel_apc_pending=1, only_stuck=True)
    stopped = replace(WINDOWS_10, bugcheck=BugCheck(0xA, (0, 0, 0, 0), "nt!KiBugCheckData"))
    assert severities(check_thread(alone, WINDOWS_10)) == {"stuck-deliverable": "medium"}
    assert severities(check_thread(alone, stopped)) == {"stuck-deliverable": "high"}


def test_a_lost_apc() -> None:
    """An APC that SavedApcState of a thread at index 0 holds, and that says it is queued there, is lost: high."""
    apc = special(queue=QueueName.SAVED_KERNEL, apc_state_index=1)
    lost = thread(lost=(apc,), saved_kernel_flink=apc.address + 0x10, **TO_WINDOWS_7)
    assert severities(check_thread(lost, WINDOWS_7)) == {"lost-apc": "high"}
    stale = thread(saved_kernel_flink=SAVED_KERNEL_HEAD, saved_kernel_blink=SAVED_KERNEL_HEAD, **TO_WINDOWS_7)
    assert severities(check_thread(stale, WINDOWS_7)) == {}
