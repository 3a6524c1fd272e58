"""The findings about APCs that should have been delivered or are not there, and their legitimate neighbours."""

from __future__ import annotations

import pytest
from volatility3.plugins.windows.apcaudit.checks import threads as checks
from volatility3.plugins.windows.apcaudit.model import (
    Ending,
    Facts,
    Queue,
    QueueName,
    Thread,
)

from tests.situations_pure import (
    KERNEL_HEAD,
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
        thread(kernel=[special()], kernel_apc_pending=1, state=8, special_apc_in_progress=None),
        {"stuck-deliverable": "high"},
        WINDOWS_7,
    ),
    case(
        "XP knows neither SpecialApcDisable nor SpecialApcInProgress",
        thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=None, special_apc_in_progress=None),
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
    assert severities(checks.check(subject, facts)) == expected
