"""The findings about a thread that is attached or holds APCs back, and the legitimate neighbours of each."""

from __future__ import annotations

import pytest
from volatility3.plugins.windows.apcaudit.checks import threads as checks
from volatility3.plugins.windows.apcaudit.model import (
    BugCheck,
    Facts,
    Thread,
)

from tests.situations_pure import (
    APC_SIZE,
    ATTACHED,
    IDLE,
    RUNNING,
    WINDOWS_7,
    WINDOWS_XP,
    case,
    normal,
    severities,
    special,
    thread,
    user,
)

STOPPED_BY_0X6 = Facts(APC_SIZE, bugcheck=BugCheck(0x6, (0, 0, 0, 0), "nt!KiBugCheckData"))

DETACH = [
    case(
        "the seed: running, attached, a special APC queued and signalled",
        thread(kernel=[special()], kernel_apc_pending=1, **ATTACHED, **RUNNING),
        {"detach-bugcheck": "critical"},
        WINDOWS_XP,
    ),
    case(
        "the seed after the machine has stopped",
        thread(kernel=[special()], kernel_apc_pending=1, **ATTACHED, **RUNNING),
        {"detach-bugcheck": "critical"},
        STOPPED_BY_0X6,
    ),
    case(
        "attached, an APC in progress",
        thread(kernel_apc_in_progress=1, **ATTACHED),
        {"detach-bugcheck": "critical"},
    ),
    case(
        "attached, a user APC queued to the attached environment",
        thread(user=[user()], **ATTACHED),
        {"detach-bugcheck": "critical"},
    ),
    case(
        "attached in a critical region, a normal APC queued and not signalled",
        thread(kernel=[normal()], kernel_apc_disable=-1, **ATTACHED),
        {"detach-bugcheck": "critical"},
    ),
    case(
        "attached, waiting at APC_LEVEL",
        thread(kernel=[special()], kernel_apc_pending=1, wait_irql=1, **ATTACHED),
        {"detach-bugcheck": "critical", "undelivered": "high"},
    ),
    case(
        "attached, waiting in a guarded region",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=-1, **ATTACHED),
        {"detach-bugcheck": "critical", "undelivered": "high"},
    ),
    case(
        "attached, waiting at IRQL 0 with kernel APCs enabled: the drain empties the list",
        thread(kernel=[special(), normal()], kernel_apc_pending=1, **ATTACHED),
        {"detach-bugcheck": "low", "stuck-deliverable": "high"},
    ),
    case(
        "XP, attached, waiting at IRQL 0: there are no guarded regions that could keep the drain",
        thread(
            kernel=[special()],
            kernel_apc_pending=1,
            special_apc_disable=None,
            special_apc_in_progress=None,
            **ATTACHED,
        ),
        {"detach-bugcheck": "low", "stuck-deliverable": "high"},
        WINDOWS_XP,
    ),
    case(
        "attached, deliverable kernel APCs and a user APC: the drain leaves the user APC",
        thread(kernel=[special()], user=[user()], kernel_apc_pending=1, **ATTACHED),
        {"detach-bugcheck": "critical", "stuck-deliverable": "high"},
    ),
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
    case("idle threads run attached", thread(**IDLE), {}),
]

UNDELIVERED = [
    case(
        "waiting at APC_LEVEL, as below a fast mutex",
        thread(kernel=[special()], kernel_apc_pending=1, wait_irql=1),
        {"undelivered": "medium"},
    ),
    case(
        "the IRQL that a crash saved",
        thread(kernel=[special()], kernel_apc_pending=1, irql=1, **RUNNING),
        {"undelivered": "medium"},
    ),
    case(
        "in a guarded region",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=-1),
        {"undelivered": "medium"},
    ),
    case(
        "in a critical region with a normal APC next",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=-1),
        {"undelivered": "low"},
    ),
    case(
        "a normal APC in progress and another next",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_in_progress=1),
        {"undelivered": "low"},
    ),
    case(
        "a suspended thread of 7 (KiSuspendThread is a normal APC) with another normal APC",
        thread(
            kernel=[normal()],
            kernel_apc_pending=1,
            kernel_apc_in_progress=1,
            wait_reason=5,
            special_apc_in_progress=None,
        ),
        {"undelivered": "low"},
        WINDOWS_7,
    ),
    case(
        "in a critical region, attached",
        thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=-1, **ATTACHED),
        {"undelivered": "high", "detach-bugcheck": "critical"},
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
    case(
        "in a critical region, a normal APC that is not signalled",
        thread(kernel=[normal()], kernel_apc_disable=-1),
        {},
    ),
    case("in progress, the next one is not signalled", thread(kernel=[normal()], kernel_apc_in_progress=1), {}),
    case("in a critical region, nothing queued", thread(kernel_apc_disable=-12), {}),
    case("in a guarded region, nothing queued", thread(special_apc_disable=-3), {}),
    case(
        "WaitIrql unreadable",
        thread(kernel=[special()], kernel_apc_pending=1, wait_irql=None),
        {},
    ),
    case(
        "KernelApcPending unreadable",
        thread(kernel=[special()], kernel_apc_pending=None, wait_irql=1),
        {},
    ),
    case(
        "NormalRoutine of the head unreadable in a critical region",
        thread(kernel=[normal(normal_routine=None)], kernel_apc_pending=1, kernel_apc_disable=-1),
        {},
    ),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), [*DETACH, *UNDELIVERED])
def test_findings_of_a_thread(subject: Thread, facts: Facts, expected: dict[str, str]) -> None:
    """A thread carries exactly the findings whose condition holds, each with its severity."""
    assert severities(checks.check(subject, facts)) == expected
