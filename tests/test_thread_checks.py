"""The findings about a thread that is attached or holds APCs back, and the legitimate neighbours of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_thread
from volatility3.plugins.windows.apcaudit.model import BugCheck, Facts, Process, Thread

from tests.situations_pure import (
    ATTACHED,
    IDLE,
    OTHER,
    OWNER,
    RUNNING,
    THREAD,
    TO_WINDOWS_7,
    TO_WINDOWS_XP,
    WINDOWS_7,
    WINDOWS_10,
    WINDOWS_XP,
    case,
    normal,
    scheduler,
    severities,
    special,
    thread,
    user,
)


def stopped_by(code: int, crashed: int | None = THREAD, facts: Facts = WINDOWS_10) -> Facts:
    """Return what is known of a machine that a bugcheck stopped on a thread."""
    return replace(facts, bugcheck=BugCheck(code, (0, 0, 0, 0), "nt!KiBugCheckData"), crashing_thread=crashed)


SEED: dict[str, Any] = {"kernel": [special()], "kernel_apc_pending": 1, **ATTACHED, **RUNNING}
WAITING: dict[str, Any] = {"kernel": [special()], "kernel_apc_pending": 1, **ATTACHED}
PREEMPTED = {"state": 1, "wait_reason": 30, "wait_irql": 1}

DETACH = [
    case(
        "the seed: 0x6 stopped the machine on this thread",
        thread(**SEED, **TO_WINDOWS_XP),
        {"detach-bugcheck": "critical"},
        stopped_by(0x6, facts=WINDOWS_XP),
    ),
    case("the seed's look-alike on a live machine", thread(**SEED), {"detach-bugcheck": "high"}),
    case(
        "0x6 stopped the machine on another thread",
        thread(**SEED),
        {"detach-bugcheck": "high"},
        stopped_by(0x6, THREAD + 0x1000),
    ),
    case(
        "0x6 stopped the machine on a thread unknown",
        thread(**SEED),
        {"detach-bugcheck": "high"},
        stopped_by(0x6, None),
    ),
    case("another bugcheck stopped it on this thread", thread(**SEED), {"detach-bugcheck": "high"}, stopped_by(0xA)),
    case(
        "a normal APC in progress alone, the thread waits in it: a hard-error pop-up",
        thread(kernel_apc_in_progress=1, **ATTACHED),
        {"detach-bugcheck": "low"},
    ),
    case(
        "a normal APC in progress alone, the thread runs",
        thread(kernel_apc_in_progress=1, **ATTACHED, **RUNNING),
        {"detach-bugcheck": "high"},
    ),
    case(
        "a user APC queued to the attached environment", thread(user=[user()], **ATTACHED), {"detach-bugcheck": "high"}
    ),
    case(
        "in a critical region, a normal APC queued and not signalled",
        thread(kernel=[normal()], kernel_apc_disable=-1, **ATTACHED),
        {"detach-bugcheck": "high"},
    ),
    case(
        "in a critical region, a normal APC queued and signalled",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=-1, **ATTACHED),
        {"detach-bugcheck": "high", "undelivered": "low"},
    ),
    case("waiting at APC_LEVEL", thread(**WAITING, wait_irql=1), {"detach-bugcheck": "high", "undelivered": "high"}),
    case(
        "waiting in a guarded region",
        thread(**WAITING, special_apc_disable=-1),
        {"detach-bugcheck": "high", "undelivered": "high"},
    ),
    case(
        "waiting at IRQL 0, linked in without a signal: nothing is drained",
        thread(kernel=[special()], **ATTACHED),
        {"detach-bugcheck": "high", "stuck-deliverable": "high", "pending-lost": "medium"},
    ),
    case(
        "waiting at IRQL 0 with kernel APCs enabled: delivery comes first",
        thread(kernel=[special(), normal()], kernel_apc_pending=1, **ATTACHED),
        {"detach-bugcheck": "low", "stuck-deliverable": "high"},
    ),
    case(
        "XP, waiting at IRQL 0: there are no guarded regions that could keep the APC",
        thread(**WAITING, **TO_WINDOWS_XP),
        {"detach-bugcheck": "low", "stuck-deliverable": "high"},
        WINDOWS_XP,
    ),
    case(
        "a critical region does not keep a special APC",
        thread(**WAITING, kernel_apc_disable=-1),
        {"detach-bugcheck": "low", "stuck-deliverable": "high"},
    ),
    case(
        "waiting at IRQL 0, a kernel APC and a user APC, which nothing delivers there",
        thread(kernel=[special()], user=[user()], kernel_apc_pending=1, **ATTACHED),
        {"detach-bugcheck": "high", "stuck-deliverable": "high"},
    ),
    *(
        case(
            f"about to run (State {state}): it is interrupted first",
            thread(**WAITING, state=state),
            {"detach-bugcheck": "low"},
        )
        for state in (1, 3, 6, 7)
    ),
    case("preempted, WaitIrql left by that", thread(**{**WAITING, **PREEMPTED}), {"detach-bugcheck": "low"}),
    case(
        "ready after a wait at APC_LEVEL: it goes on at APC_LEVEL",
        thread(**WAITING, state=1, wait_irql=1),
        {"detach-bugcheck": "high"},
    ),
    case(
        "XP, ready: that it was preempted cannot be told",
        thread(**WAITING, state=1, wait_irql=1, **TO_WINDOWS_XP),
        {"detach-bugcheck": "low"},
        WINDOWS_XP,
    ),
    case(
        "ready in a guarded region",
        thread(**WAITING, state=1, special_apc_disable=-1),
        {"detach-bugcheck": "high", "undelivered": "low"},
    ),
    case("ready, not signalled", thread(kernel=[special()], state=1, **ATTACHED), {"detach-bugcheck": "high"}),
    case("attached with nothing queued", thread(**ATTACHED), {}),
    case(
        "attached, APCs waiting in the original environment",
        thread(saved_kernel=[normal(), special()], saved_user=[user()], **ATTACHED),
        {},
    ),
    case("not attached, an APC in progress", thread(kernel_apc_in_progress=1), {}),
    case("not attached, a user APC queued", thread(user=[user()]), {}),
    case(
        "ApcStateIndex unreadable",
        thread(kernel=[normal()], **{**ATTACHED, "apc_state_index": None, "kernel_apc_disable": -1}),
        {},
    ),
    case("attached, KernelApcInProgress unreadable", thread(**ATTACHED, kernel_apc_in_progress=None), {}),
    case(
        "WaitIrql unreadable: delivery first is not certain",
        thread(**WAITING, wait_irql=None),
        {"detach-bugcheck": "high"},
    ),
    case("idle threads run attached", thread(**IDLE), {}),
]

UNDELIVERED = [
    case(
        "waiting at APC_LEVEL, as below a fast mutex",
        thread(kernel=[special()], kernel_apc_pending=1, wait_irql=1),
        {"undelivered": "medium"},
    ),
    case(
        "the IRQL that a crash saved: 1",
        thread(kernel=[special()], kernel_apc_pending=1, irql=1, **RUNNING),
        {"undelivered": "low"},
        stopped_by(0xA),
    ),
    case(
        "0x6 saves the IRQL of KeUnstackDetachProcess's own lock",
        thread(kernel=[special()], kernel_apc_pending=1, irql=1, **RUNNING),
        {},
        stopped_by(0x6),
    ),
    case(
        "the IRQL that a crash saved: 2, which the code that crashed had reasons for",
        thread(kernel=[special()], kernel_apc_pending=1, irql=2, **RUNNING),
        {},
        stopped_by(0xA),
    ),
    case(
        "in a guarded region",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=-1),
        {"undelivered": "medium"},
    ),
    case(
        "running in a guarded region, as an IPI may find it",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=-1, **RUNNING),
        {"undelivered": "low"},
    ),
    case(
        "in a critical region with a normal APC next",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=-1),
        {"undelivered": "low"},
    ),
    case(
        "in a critical region, the own SchedulerApc before another normal APC",
        thread(kernel=[scheduler(), normal()], kernel_apc_pending=1, kernel_apc_disable=-1),
        {"undelivered": "low"},
    ),
    case(
        "a normal APC in progress and another next",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_in_progress=1),
        {"undelivered": "low"},
    ),
    case(
        "a special APC in progress that waits, and another next",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_in_progress=1, wait_irql=1),
        {"undelivered": "low"},
    ),
    *(
        case(
            f"a page is read in for a special APC (WaitReason {reason}), which before 8.1 nothing else shows",
            thread(kernel=[special()], kernel_apc_pending=1, wait_irql=1, wait_reason=reason, **TO_WINDOWS_7),
            {"undelivered": "low"},
            WINDOWS_7,
        )
        for reason in (2, 9)
    ),
    case(
        "a suspended thread of 7 (KiSuspendThread is a normal APC) with another normal APC",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_in_progress=1, wait_reason=5, **TO_WINDOWS_7),
        {"undelivered": "low"},
        WINDOWS_7,
    ),
    case(
        "IRQL comes before the critical region",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=-1, wait_irql=1),
        {"undelivered": "medium"},
    ),
    case(
        "ApcMode of the head is that of the user: KiDeliverApc looks at NormalRoutine alone",
        thread(kernel=[normal(apc_mode=1)], kernel_apc_pending=1, kernel_apc_disable=-1),
        {"undelivered": "low"},
    ),
    case("running, queued and signalled a moment ago", thread(kernel=[special()], kernel_apc_pending=1, **RUNNING), {}),
    case(
        "running, WaitIrql left from the last wait",
        thread(kernel=[special()], kernel_apc_pending=1, wait_irql=1, **RUNNING),
        {},
    ),
    case("ready, will be interrupted when it runs", thread(kernel=[special()], kernel_apc_pending=1, state=1), {}),
    case("preempted with WaitIrql 1", thread(kernel=[special()], kernel_apc_pending=1, **PREEMPTED), {}),
    case("in a critical region, a normal APC not signalled", thread(kernel=[normal()], kernel_apc_disable=-1), {}),
    case("in progress, the next one is not signalled", thread(kernel=[normal()], kernel_apc_in_progress=1), {}),
    case("in a critical region, nothing queued", thread(kernel_apc_disable=-12), {}),
    case("in a guarded region, nothing queued", thread(special_apc_disable=-3), {}),
    case("WaitIrql unreadable", thread(kernel=[special()], kernel_apc_pending=1, wait_irql=None), {}),
    case("KernelApcPending unreadable", thread(kernel=[special()], kernel_apc_pending=None, wait_irql=1), {}),
    case(
        "NormalRoutine of the head unreadable in a critical region",
        thread(kernel=[normal(normal_routine=None)], kernel_apc_pending=1, kernel_apc_disable=-1),
        {},
    ),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), [*DETACH, *UNDELIVERED])
def test_findings_of_a_thread(subject: Thread, facts: Facts, expected: dict[str, str]) -> None:
    """A thread carries exactly the findings whose condition holds, each with its severity."""
    assert severities(check_thread(subject, facts)) == expected


def detach_text(subject: Thread, facts: Facts = WINDOWS_10) -> str:
    return next(each.explanation for each in check_thread(subject, facts) if each.code == "detach-bugcheck")


@pytest.mark.parametrize(
    ("subject", "facts", "said"),
    [
        pytest.param(thread(**SEED), WINDOWS_10, "if it detaches in this state", id="not proven: if"),
        pytest.param(thread(**SEED), WINDOWS_10, "may be delivered in the next instruction", id="live and running"),
        pytest.param(thread(**SEED), stopped_by(0x6), "that it stopped on this thread", id="proven"),
        pytest.param(thread(**SEED, wait_irql=1), WINDOWS_10, "seems to hold a fast mutex", id="last wait at 1"),
        pytest.param(
            thread(**SEED, wait_irql=1, **TO_WINDOWS_XP), WINDOWS_XP, "may hold a fast mutex", id="XP: or preempted"
        ),
        pytest.param(
            thread(**SEED, wait_irql=1, irql=2),
            stopped_by(0x6),
            "seems to hold",
            id="0x6 hides no WaitIrql",
        ),
        pytest.param(
            thread(**{**SEED, "apc_process": OWNER.address}),
            WINDOWS_10,
            "its own process within another attach",
            id="attached back to its own process",
        ),
        pytest.param(
            thread(kernel=[special()], **ATTACHED),
            WINDOWS_10,
            "with KernelApcPending 0 nothing is drained",
            id="drain",
        ),
    ],
)
def test_what_a_detach_would_do(subject: Thread, facts: Facts, said: str) -> None:
    """The sentence says what the image proves, and "if" where it depends on what the thread does next."""
    assert said in detach_text(subject, facts)


def test_a_preempted_thread_shows_no_fast_mutex() -> None:
    """WaitIrql 1 of a thread that was preempted before it ran again tells of no lock."""
    assert "fast mutex" not in detach_text(thread(**{**SEED, "wait_irql": 1, "wait_reason": 30}))


def test_the_process_attached_to_is_named() -> None:
    """An attached thread's sentence names the process by name and PID."""
    assert str(Process(OTHER.address, 1172, "BAVSvc.exe")) in detach_text(thread(**SEED))
