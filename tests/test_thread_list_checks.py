"""The findings about damaged lists, and what every explanation of a thread's findings gives."""

from __future__ import annotations

from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_thread
from volatility3.plugins.windows.apcaudit.model import Backing, Ending, Facts, Process, Queue, QueueName, Thread

from tests.situations_pure import (
    ABSENT_ENTRY,
    APC_SIZE,
    ATTACHED,
    IN_KERNEL,
    KERNEL_HEAD,
    OTHER,
    OWNER,
    RUNNING,
    TERMINATED,
    WINDOWS_10,
    absent_queue,
    case,
    damaged_queue,
    normal,
    severities,
    special,
    thread,
    user,
)

MINIDUMP = Facts(APC_SIZE, partial=True)

FIRST = 0xFFFF8A0000010018

LISTS = [
    case(
        "a link to memory that cannot be read",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.UNREADABLE)]),
        {"list-broken": "high"},
    ),
    case(
        "a link of a minidump that leads to no kernel memory",
        thread(apc_kernel_flink=0, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.UNREADABLE)]),
        {"list-broken": "high"},
        MINIDUMP,
    ),
    case(
        "a link to what a minidump does not hold",
        thread(apc_kernel_flink=ABSENT_ENTRY, kernel_apc_disable=-1, damaged=[absent_queue()]),
        {},
        MINIDUMP,
    ),
    case(
        "a misaligned link in a minidump",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.MISALIGNED)]),
        {"list-broken": "high"},
        MINIDUMP,
    ),
    case(
        "a link into another list",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.OTHER_HEAD)]),
        {"list-broken": "high"},
    ),
    case(
        "a misaligned link",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.MISALIGNED)]),
        {"list-broken": "high"},
    ),
    case(
        "a Blink that does not come back",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.CLOSED, broken_at=FIRST)]),
        {"list-broken": "high"},
    ),
    case(
        "the user list's",
        thread(apc_user_flink=FIRST, damaged=[damaged_queue(Ending.UNREADABLE, name=QueueName.USER)]),
        {"list-broken": "high"},
    ),
    case(
        "only the head's Blink: nothing is queued",
        thread(damaged=[Queue(QueueName.KERNEL, KERNEL_HEAD, (), Ending.CLOSED, KERNEL_HEAD, KERNEL_HEAD)]),
        {"list-broken": "high"},
    ),
    case(
        "a list that closes without its head",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.CYCLE)]),
        {"list-cycle": "high"},
    ),
    case(
        "a cycle and a Blink that does not come back",
        thread(apc_kernel_flink=FIRST, kernel_apc_disable=-1, damaged=[damaged_queue(Ending.CYCLE, broken_at=FIRST)]),
        {"list-cycle": "high", "list-broken": "high"},
    ),
    case(
        "attached, a cycle: the head points elsewhere than to itself, and no drain ends",
        thread(apc_kernel_flink=FIRST, kernel_apc_pending=1, damaged=[damaged_queue(Ending.CYCLE)], **ATTACHED),
        {"list-cycle": "high", "detach-bugcheck": "high", "stuck-deliverable": "high"},
    ),
    case("intact lists", thread(kernel=[normal(), normal()], user=[user(), user()], kernel_apc_disable=-1), {}),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), [*LISTS])
def test_findings_of_a_thread(subject: Thread, facts: Facts, expected: dict[str, str]) -> None:
    """A thread carries exactly the findings whose condition holds, each with its severity."""
    assert severities(check_thread(subject, facts)) == expected


@pytest.mark.parametrize("name", ["state", "wait_irql", "apc_state_index", "kernel_apc_pending", "terminated"])
def test_an_unknown_member_adds_no_finding(name: str) -> None:
    """A thread that is as it should be has no finding for want of one of its members."""
    assert severities(check_thread(thread(**{name: None}), WINDOWS_10)) == {}


def test_nothing_known_is_nothing_found() -> None:
    """A thread of which nothing could be read has no finding."""
    members = thread().members
    unknown: dict[str, Any] = dict.fromkeys(members._fields)
    assert severities(check_thread(thread(**unknown, owner=None), WINDOWS_10)) == {}


@pytest.mark.parametrize(
    ("subject", "facts", "code", "values"),
    [
        pytest.param(
            thread(kernel=[special(address=0xFFFF8A0000099008)], **ATTACHED, **RUNNING),
            WINDOWS_10,
            "detach-bugcheck",
            ["BAVSvc.exe (1172)", "0xffff8a0000099008", IN_KERNEL.text, "0x6"],
            id="detach-bugcheck names process, APC and stop code",
        ),
        pytest.param(
            thread(kernel=[special()], kernel_apc_pending=1, wait_irql=1),
            WINDOWS_10,
            "undelivered",
            ["reason irql", "IRQL 1"],
            id="undelivered names the IRQL",
        ),
        pytest.param(
            thread(kernel=[special()], kernel_apc_pending=1, special_apc_disable=-3),
            WINDOWS_10,
            "undelivered",
            ["reason guarded-region", "-3"],
            id="undelivered names the guarded region",
        ),
        pytest.param(
            thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_disable=-12),
            WINDOWS_10,
            "undelivered",
            ["reason critical-region", "-12"],
            id="undelivered names the critical region",
        ),
        pytest.param(
            thread(kernel=[normal()], kernel_apc_pending=1, kernel_apc_in_progress=1),
            WINDOWS_10,
            "undelivered",
            ["reason in-progress"],
            id="undelivered names the APC in progress",
        ),
        pytest.param(
            thread(kernel_apc_disable=-1, **TERMINATED),
            WINDOWS_10,
            "exit-bugcheck",
            ["KernelApcDisable is -1", "0x20"],
            id="exit-bugcheck names what is left",
        ),
        pytest.param(
            thread(**{**ATTACHED, "saved_process": 0xFFFF8A0000777080}),
            WINDOWS_10,
            "state-mismatch",
            ["ApcStateIndex is 1", "0xffff8a0000777080", f"{OWNER.address:#x}"],
            id="state-mismatch names both processes",
        ),
        pytest.param(
            thread(start_address=0xFFFF8A0000345010, start_backing=Backing.NOTHING),
            WINDOWS_10,
            "orphan-start",
            ["0xffff8a0000345010"],
            id="orphan-start names the address",
        ),
        pytest.param(
            thread(apc_kernel_flink=FIRST, damaged=[damaged_queue(Ending.CYCLE)]),
            WINDOWS_10,
            "list-cycle",
            ["kernel", f"{KERNEL_HEAD:#x}", f"{FIRST:#x}"],
            id="list-cycle names list, head and where it closes",
        ),
        pytest.param(
            thread(apc_kernel_flink=FIRST, damaged=[damaged_queue(Ending.CLOSED, broken_at=FIRST)]),
            WINDOWS_10,
            "list-broken",
            ["kernel", f"{FIRST:#x}"],
            id="list-broken names list and entry",
        ),
    ],
)
def test_an_explanation_gives_the_values(subject: Thread, facts: Facts, code: str, values: list[str]) -> None:
    """An explanation is one sentence that holds the values that led to the finding."""
    (explanation,) = [finding.explanation for finding in check_thread(subject, facts) if finding.code == code]
    assert [value for value in values if value not in explanation] == []
    assert not explanation.endswith(".")


@pytest.mark.parametrize(
    ("members", "inferred"),
    [
        pytest.param({**RUNNING, "wait_irql": 1}, True, id="running, its last wait began at APC_LEVEL"),
        pytest.param({**RUNNING, "wait_irql": 0}, False, id="running, its last wait began at PASSIVE_LEVEL"),
        pytest.param({**RUNNING, "wait_irql": 1, "irql": 0}, False, id="running, the IRQL is known"),
        pytest.param({"wait_irql": 1}, False, id="waiting: nothing is inferred"),
    ],
)
def test_what_is_inferred_is_marked(members: dict[str, Any], inferred: bool) -> None:
    """That a running thread holds a fast mutex is an inference from its last wait, and marked as one."""
    (explanation,) = [
        finding.explanation
        for finding in check_thread(thread(kernel=[special()], **ATTACHED, **members), WINDOWS_10)
        if finding.code == "detach-bugcheck"
    ]
    assert ("inferred: " in explanation) is inferred


def test_the_attached_process_may_be_unnamed() -> None:
    """A thread attached to a process whose name cannot be read is told by the process's address."""
    subject = thread(kernel_apc_in_progress=1, **ATTACHED, attached=Process(OTHER.address, None, None))
    (finding,) = check_thread(subject, WINDOWS_10)
    assert f"{OTHER.address:#x} (?)" in finding.explanation
