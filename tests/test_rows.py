"""The rows of a thread: one a queued APC, each with its findings."""

from __future__ import annotations

import pytest
from volatility3.plugins.windows.apcaudit.findings import Audited, AuditedApc, Finding, Severity
from volatility3.plugins.windows.apcaudit.model import Ending, Origin, Queue, QueueName, Thread
from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS, Row, rows_of

from tests.situations_pure import (
    ATTACHED,
    KERNEL_HEAD,
    WINDOWS_10,
    normal,
    special,
    thread,
    user,
)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(thread(), [None], id="one row without an APC"),
        pytest.param(
            thread(kernel=[special(), normal()], user=[user()]), ["kernel", "kernel", "user"], id="one row an APC"
        ),
        pytest.param(
            thread(saved_user=[user()], saved_kernel=[normal()], kernel=[normal()], **ATTACHED),
            ["kernel", "saved-kernel", "saved-user"],
            id="in the order of the lists",
        ),
        pytest.param(
            thread(damaged=[Queue(QueueName.KERNEL, KERNEL_HEAD, (), Ending.UNREADABLE, KERNEL_HEAD)]),
            [None],
            id="a damaged list of which nothing was read",
        ),
    ],
)
def test_rows_of_a_thread(subject: Thread, expected: list[str | None]) -> None:
    """A thread has one row a queued APC, by list and position, and one row where nothing is queued."""
    rows = rows_of(Audited(subject, (), {}), WINDOWS_10)
    assert [row.queue.name.value if row.queue else None for row in rows] == expected
    positions = [row.apc.position for row in rows if row.apc and row.queue and row.queue.name is QueueName.KERNEL]
    assert positions == list(range(len(positions)))


def test_a_row_has_the_threads_findings_and_its_own_apcs() -> None:
    """An APC's findings stand on its row alone; the thread's stand on every row; the highest severity counts."""
    subject = thread(kernel=[special(address=0x1008), normal(address=0x2008)])
    findings = (Finding("undelivered", Severity.MEDIUM, "why"), Finding("detach-bugcheck", Severity.LOW, "what"))
    own = {(QueueName.KERNEL, 0x2008, False): AuditedApc((Finding("bad-object", Severity.HIGH, "odd"),))}
    cells = [
        [column.value(row) for column in COLUMNS if column.name in ("Severity", "Findings")]
        for row in rows_of(Audited(subject, findings, own), WINDOWS_10)
    ]
    assert cells == [
        ["medium", "detach-bugcheck,undelivered"],
        ["high", "bad-object,detach-bugcheck,undelivered"],
    ]


def test_one_kapc_on_two_lists_has_two_rows() -> None:
    """The findings of a KAPC that hangs on two lists of a thread are each list's own."""
    subject = thread(kernel=[special(address=0x1008)], user=[special(address=0x1008)])
    own = {(QueueName.USER, 0x1008, False): AuditedApc((Finding("mode-mismatch", Severity.HIGH, "mode"),))}
    rows = rows_of(Audited(subject, (), own), WINDOWS_10)
    assert [[finding.code for finding in row.findings] for row in rows] == [[], ["mode-mismatch"]]


def test_an_explained_row_tells_evidence_from_inference() -> None:
    """Behind the findings stand what the image shows of an APC's origin, and what is inferred, each marked."""
    origin = Origin("IRP 0x1000 of disk?", ("KernelRoutine is IopCompleteRequest", "Type is 6"), ("disk issued it",))
    subject = thread(kernel=[special(address=0x1008)])
    of_apc = {(QueueName.KERNEL, 0x1008, False): AuditedApc(origin=origin)}
    audited = Audited(subject, (Finding("undelivered", Severity.LOW, "it waits"),), of_apc)
    (row,) = rows_of(audited, WINDOWS_10, wide=True)
    (cell,) = [column.value(row) for column in COLUMNS if column.name == "Explanation"]
    assert cell == (
        "undelivered: it waits. evidence: KernelRoutine is IopCompleteRequest; Type is 6. inferred: disk issued it."
    )


def test_a_row_without_findings() -> None:
    """Without a finding the severity is info, and findings and explanation are empty."""
    (row,) = rows_of(Audited(thread(kernel=[normal()]), (), {}), WINDOWS_10)
    cells = {column.name: column.value(row) for column in COLUMNS}
    assert (cells["Severity"], cells["Findings"], cells["Explanation"]) == ("info", "", "")


def test_a_finding_by_both_thread_and_apc_is_named_once() -> None:
    """A code stands once in Findings, however often it holds."""
    finding = Finding("list-broken", Severity.HIGH, "damage")
    row = Row(Audited(thread(), (finding, finding), {}), WINDOWS_10)
    (cell,) = [column.value(row) for column in COLUMNS if column.name == "Findings"]
    assert cell == "list-broken"
