"""The columns of the table: the contract with everything that reads rows."""

from __future__ import annotations

from typing import Any

import pytest
from volatility3.framework import renderers
from volatility3.framework.renderers import format_hints
from volatility3.plugins.windows.apcaudit.findings import Audited, AuditedApc, Finding, Severity
from volatility3.plugins.windows.apcaudit.model import Backing, Code, Facts, Origin, Process, Thread, View
from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS, rows_of
from volatility3.plugins.windows.apcaudit.targets import Lies, Place, Target

from tests.situations_pure import (
    ATTACHED,
    IN_DRIVER,
    IN_KERNEL,
    NO_ROUTINE,
    OTHER,
    THREAD,
    WINDOWS_10,
    WINDOWS_XP,
    code,
    normal,
    special,
    thread,
    user,
)

CONTRACT = [
    ("Thread", format_hints.Hex),
    ("PID", int),
    ("TID", int),
    ("Process", str),
    ("Attached", str),
    ("State", str),
    ("Views", str),
    ("ApcStateIndex", int),
    ("KernelApcInProgress", bool),
    ("KernelApcPending", bool),
    ("UserApcPending", bool),
    ("KernelApcDisable", int),
    ("SpecialApcDisable", int),
    ("WaitIrql", int),
    ("StartAddress", format_hints.Hex),
    ("StartRoutine", str),
    ("Yara", str),
    ("Queue", str),
    ("Apc", format_hints.Hex),
    ("Kind", str),
    ("KernelRoutine", str),
    ("NormalRoutine", str),
    ("RundownRoutine", str),
    ("NormalContext", format_hints.Hex),
    ("SystemArgument1", format_hints.Hex),
    ("SystemArgument2", format_hints.Hex),
    ("Target", str),
    ("Origin", str),
    ("Severity", str),
    ("Findings", str),
    ("Explanation", str),
]

UNREADABLE = renderers.UnreadableValue
NOT_APPLICABLE = renderers.NotApplicableValue


def values(subject: Thread, facts: Facts = WINDOWS_10, **audited: Any) -> dict[str, Any]:
    """Return the first row of a thread by column, vol's absent values as their classes."""
    return values_of(Audited(subject, **audited), facts)


def values_of(audited: Audited, facts: Facts = WINDOWS_10) -> dict[str, Any]:
    """Return the first row of an audited thread by column, vol's absent values as their classes."""
    row = rows_of(audited, facts)[0]
    cells = {column.name: column.value(row) for column in COLUMNS}
    return {
        name: type(cell) if isinstance(cell, renderers.interfaces.renderers.BaseAbsentValue) else cell
        for name, cell in cells.items()
    }


def with_target(target: Target | None) -> Audited:
    """A thread with one user APC, and what that would run."""
    subject = thread(user=[user()])
    return Audited(subject, apcs={subject.queues[0].apcs[0].key: AuditedApc(target=target)})


def test_the_contract() -> None:
    """The wide table has exactly these columns, in this order, of these types."""
    assert [(column.name, column.type) for column in COLUMNS] == CONTRACT


def test_the_narrow_table_still_says_what_matters() -> None:
    """Without --wide the columns of thread, queue, APC, routine and verdict are there."""
    narrow = {column.name for column in COLUMNS if not column.wide}
    assert narrow >= {
        *("Thread", "PID", "TID", "Process", "State", "ApcStateIndex", "KernelApcPending"),
        *("Queue", "Apc", "KernelRoutine", "Severity", "Findings", "Explanation"),
    }


def test_a_whole_row() -> None:
    """A row holds the values as they stand in the image, each of the column's type."""
    subject = thread(
        kernel=[
            normal(
                address=0xFFFF8A0000010008,
                kernel_routine=IN_KERNEL,
                normal_context=0xFFFF8A0000012340,
                system_argument1=0xFFFF8A0000056780,
                system_argument2=0,
            )
        ],
        kernel_apc_pending=1,
        kernel_apc_disable=-12,
        special_apc_disable=-1,
        wait_irql=1,
        tid=280,
        views=frozenset({View.SCAN, View.LIST}),
        **ATTACHED,
    )
    row = values(
        subject,
        yara="Suspicious@start",
        findings=(Finding("undelivered", Severity.HIGH, "it waits"),),
        start=IN_DRIVER,
        apcs={
            subject.queues[0].apcs[0].key: AuditedApc(
                (Finding("routine-unbacked", Severity.CRITICAL, "it lies nowhere"),),
                Origin("IRP 0xffff8a000000ff90 of disk?"),
            )
        },
    )
    assert row == {
        "Thread": THREAD,
        "PID": 4,
        "TID": 280,
        "Process": "System",
        "Attached": "BAVSvc.exe (1172)",
        "State": "Waiting:WrQueue",
        "Views": "list+scan",
        "ApcStateIndex": 1,
        "KernelApcInProgress": False,
        "KernelApcPending": True,
        "UserApcPending": False,
        "KernelApcDisable": -12,
        "SpecialApcDisable": -1,
        "WaitIrql": 1,
        "StartAddress": IN_DRIVER.address,
        "StartRoutine": "Bfilter!DriverEntry+0x10",
        "Yara": "Suspicious@start",
        "Queue": "kernel",
        "Apc": 0xFFFF8A0000010008,
        "Kind": "normal-kernel",
        "KernelRoutine": "nt!IopCompleteRequest",
        "NormalRoutine": "Bfilter!DriverEntry+0x10",
        "RundownRoutine": "0x0",
        "NormalContext": 0xFFFF8A0000012340,
        "SystemArgument1": 0xFFFF8A0000056780,
        "SystemArgument2": 0,
        "Target": NOT_APPLICABLE,
        "Origin": "IRP 0xffff8a000000ff90 of disk?",
        "Severity": "critical",
        "Findings": "routine-unbacked,undelivered",
        "Explanation": "routine-unbacked: it lies nowhere. undelivered: it waits.",
    }
    assert [name for name, kind in CONTRACT if name != "Target" and not isinstance(row[name], kind)] == []


MEMBER_COLUMNS = {
    "TID": "tid",
    "ApcStateIndex": "apc_state_index",
    "KernelApcInProgress": "kernel_apc_in_progress",
    "KernelApcPending": "kernel_apc_pending",
    "UserApcPending": "user_apc_pending",
    "KernelApcDisable": "kernel_apc_disable",
    "SpecialApcDisable": "special_apc_disable",
    "WaitIrql": "wait_irql",
    "StartAddress": "start_address",
}


@pytest.mark.parametrize(("column", "member"), MEMBER_COLUMNS.items())
def test_what_is_unknown_is_never_zero(column: str, member: str) -> None:
    """A member in unreadable memory is UnreadableValue, one that this Windows lacks NotApplicableValue."""
    subject = thread(**{member: None})
    assert values(subject)[column] is UNREADABLE
    assert values(subject, Facts(0x58, lacks=frozenset({member})))[column] is NOT_APPLICABLE


def test_xp_has_no_guarded_regions() -> None:
    """On XP SpecialApcDisable is not applicable; the other counters are there."""
    row = values(thread(special_apc_disable=None, special_apc_in_progress=None, kernel_apc_disable=-1), WINDOWS_XP)
    assert (row["SpecialApcDisable"], row["KernelApcDisable"]) == (NOT_APPLICABLE, -1)


APC_ARGUMENTS = ["NormalContext", "SystemArgument1", "SystemArgument2"]
APC_COLUMNS = [
    *("Queue", "Apc", "Kind", "KernelRoutine", "NormalRoutine", "RundownRoutine"),
    *(*APC_ARGUMENTS, "Target", "Origin"),
]


def test_a_thread_with_nothing_queued_has_no_apc() -> None:
    """The APC columns of a thread with nothing queued are not applicable."""
    row = values(thread())
    assert {row[name] for name in APC_COLUMNS} == {NOT_APPLICABLE}


def test_a_kapc_that_cannot_be_read() -> None:
    """Of a KAPC in unreadable memory the address is known, and nothing else."""
    unknown = {"kernel_routine": None, "normal_routine": None, "rundown_routine": None, "apc_mode": None}
    row = values(thread(user=[user(address=0xFFFF8A0000066008, **unknown)]))
    assert (row["Queue"], row["Apc"]) == ("user", 0xFFFF8A0000066008)
    assert {row[name] for name in ("Kind", "KernelRoutine", "NormalRoutine", "RundownRoutine")} == {UNREADABLE}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Place(0x20F00010000, Lies.PRIVATE, "private rwx"), "0x20f00010000 (private rwx)"),
        (Place(0x7FF810001200, Lies.IMAGE, "ntdll!NtContinue"), "ntdll!NtContinue"),
        (Place(0x6E120000, Lies.NOWHERE, "no VAD"), "0x6e120000 (no VAD)"),
        (Place(0x6E120000, Lies.UNKNOWN, "unknown", why="VadRoot cannot be read"), "0x6e120000 (unknown)"),
        (None, UNREADABLE),
    ],
)
def test_targets(place: Place | None, expected: Any) -> None:
    """Target says what holds the address that a user APC would run; of other APCs it is not applicable."""
    target = None if place is None else Target(place, OTHER.address)
    assert values_of(with_target(target))["Target"] == expected
    assert values(thread(kernel=[special()]))["Target"] == NOT_APPLICABLE


def test_why_a_target_is_not_known() -> None:
    """With --wide the explanation says why nothing is known of a target."""
    place = Place(0x6E120000, Lies.UNKNOWN, "unknown", why="the VAD tree contradicts itself at 0xffff8a0000123450")
    audited = with_target(Target(place, OTHER.address))
    said = [rows_of(audited, WINDOWS_10, wide=wide)[0] for wide in (True, False)]
    explanation = next(column for column in COLUMNS if column.name == "Explanation")
    assert [explanation.value(row) for row in said] == [f"target: 0x6e120000 is not known; {place.why}.", ""]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(thread(), NOT_APPLICABLE, id="not attached"),
        pytest.param(thread(**ATTACHED), "BAVSvc.exe (1172)", id="attached"),
        pytest.param(
            thread(**ATTACHED, attached=Process(OTHER.address, None, None)), "0xffff8a0000002080 (?)", id="unnamed"
        ),
        pytest.param(thread(apc_process=None), UNREADABLE, id="ApcState.Process unreadable"),
    ],
)
def test_the_attached_process(subject: Thread, expected: Any) -> None:
    """Attached names the process in ApcState where that is not the owner, and is unknown where it is unknown."""
    assert values(subject)["Attached"] == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param({"state": 5, "wait_reason": 15}, "Waiting:WrQueue", id="waiting"),
        pytest.param({"state": 5, "wait_reason": None}, "Waiting", id="waiting, the reason unreadable"),
        pytest.param({"state": 8, "wait_reason": 35}, "GateWait:WrGuardedMutex", id="at a gate"),
        pytest.param({"state": 1, "wait_reason": 15}, "Ready", id="ready: the reason is of the last wait"),
        pytest.param({"state": 4}, "Terminated", id="terminated"),
        pytest.param({"state": 77}, "State77", id="a state without a name"),
        pytest.param({"state": None}, UNREADABLE, id="unreadable"),
    ],
)
def test_states(members: dict[str, Any], expected: Any) -> None:
    """State names the state, and in a wait its reason."""
    assert values(thread(**members))["State"] == expected


def test_a_running_thread_is_running() -> None:
    """State is the state alone, on a processor too: that it was found there is what Views says."""
    assert values(thread(state=2))["State"] == "Running"
    row = values(thread(state=2, processor=3, views=frozenset({View.CPU})))
    assert (row["State"], row["Views"]) == ("Running", "cpu")


@pytest.mark.parametrize(
    ("subject", "start", "expected"),
    [
        pytest.param(thread(), IN_DRIVER, "Bfilter!DriverEntry+0x10", id="in a driver"),
        pytest.param(
            thread(start_backing=Backing.NOTHING),
            code(0xFFFF8A0000345010, Backing.NOTHING),
            "<no module>",
            id="in no module",
        ),
        pytest.param(
            thread(system_thread=0), code(0x7FF612340000, Backing.USER), "0x7ff612340000", id="a user thread's"
        ),
        pytest.param(thread(start_address=None), None, UNREADABLE, id="unreadable"),
    ],
)
def test_start_routines(subject: Thread, start: Code | None, expected: Any) -> None:
    """StartRoutine names module and symbol, and says where a system thread starts in no module."""
    assert values(subject, start=start)["StartRoutine"] == expected


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(thread(), ("System", 4), id="known"),
        pytest.param(thread(owner=None, pid=1172), (UNREADABLE, 1172), id="no process: PID from the thread's Cid"),
        pytest.param(thread(owner=None, pid=None), (UNREADABLE, UNREADABLE), id="nothing"),
        pytest.param(thread(owner=Process(0x1000, None, None)), (UNREADABLE, UNREADABLE), id="an unreadable process"),
        pytest.param(thread(owner=Process(0x1000, 0, "Idle")), ("Idle", 0), id="PID 0 is a PID"),
    ],
)
def test_the_owner(subject: Thread, expected: tuple[Any, Any]) -> None:
    """Process and PID are the owner's; what is unknown of it is no empty name and no 0."""
    row = values(subject)
    assert (row["Process"], row["PID"]) == expected


def test_null_routines_are_shown_as_null() -> None:
    """A routine that is not there is 0x0, not an unreadable one."""
    assert values(thread(kernel=[special(rundown_routine=NO_ROUTINE)]))["RundownRoutine"] == "0x0"
    assert isinstance(NO_ROUTINE, Code)
