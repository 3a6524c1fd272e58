"""Why a kernel APC is still queued, and whether the drain before a detach would deliver it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.checks import delivery
from volatility3.plugins.windows.apcaudit.model import Ending, Queue, QueueName, Thread

from tests.situations_pure import (
    KERNEL_HEAD,
    NO_ROUTINE,
    RUNNING,
    WINDOWS_10,
    WINDOWS_XP,
    normal,
    special,
    thread,
)


def unreadable(**members: Any) -> Thread:
    """Return a thread whose kernel list's first entry cannot be read."""
    damaged = Queue(QueueName.KERNEL, KERNEL_HEAD, (), Ending.UNREADABLE, KERNEL_HEAD)
    return thread(apc_kernel_flink=0xFFFF8A0000010018, damaged=[damaged], **members)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(thread(kernel=[special()]), True, id="holds one"),
        pytest.param(thread(), False, id="points to itself"),
        pytest.param(unreadable(), True, id="points to what cannot be read: not to itself"),
        pytest.param(
            thread(damaged=[Queue(QueueName.KERNEL, KERNEL_HEAD, (), Ending.CLOSED, KERNEL_HEAD, KERNEL_HEAD)]),
            False,
            id="only Blink is wrong: the kernel tests Flink",
        ),
        pytest.param(
            thread(
                apc_kernel_flink=None,
                damaged=[Queue(QueueName.KERNEL, KERNEL_HEAD, (), Ending.UNREADABLE, KERNEL_HEAD)],
            ),
            None,
            id="the head itself cannot be read",
        ),
        pytest.param(thread(apc_kernel_flink=None), None, id="a minidump does not hold the head"),
    ],
)
def test_a_list_is_empty_when_its_head_points_to_itself(subject: Thread, expected: bool | None) -> None:
    """Whether a list is empty is what IsListEmpty says of the head's Flink."""
    assert delivery.non_empty(subject, QueueName.KERNEL) is expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param({"state": 5, "wait_irql": 1}, 1, id="waiting"),
        pytest.param({"state": 8, "wait_irql": 1}, 1, id="waiting at a gate"),
        pytest.param({"state": 5, "wait_irql": 0, "irql": 2}, 0, id="a waiting thread's is WaitIrql"),
        pytest.param({"state": 2, "wait_irql": 1}, None, id="running: WaitIrql is of the last wait"),
        pytest.param({"state": 2, "wait_irql": 0, "irql": 2}, 2, id="running when the machine crashed"),
        pytest.param({"state": 9, "wait_irql": 1}, None, id="its wait is over"),
        pytest.param({"state": 5, "wait_irql": None}, None, id="WaitIrql unreadable"),
        pytest.param({"state": None, "wait_irql": 1}, None, id="State unreadable"),
    ],
)
def test_where_a_thread_stands(members: dict[str, Any], expected: int | None) -> None:
    """WaitIrql is a thread's IRQL in a wait and at no other time."""
    assert delivery.irql(thread(**members), WINDOWS_10) == expected


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(thread(kernel=[normal()], wait_irql=1, special_apc_disable=-1), "irql", id="IRQL first"),
        pytest.param(thread(kernel=[normal()], wait_irql=2), "irql", id="at DISPATCH_LEVEL"),
        pytest.param(
            thread(kernel=[normal()], special_apc_disable=-1, kernel_apc_disable=-1), "guarded-region", id="guarded"
        ),
        pytest.param(
            thread(kernel=[normal()], kernel_apc_disable=-1, kernel_apc_in_progress=1), "critical-region", id="critical"
        ),
        pytest.param(thread(kernel=[normal()], kernel_apc_in_progress=1), "in-progress", id="in progress"),
        pytest.param(thread(kernel=[special()], kernel_apc_disable=-1), None, id="special in a critical region"),
        pytest.param(thread(kernel=[special()], kernel_apc_in_progress=1), None, id="special over one in progress"),
        pytest.param(thread(kernel=[normal()]), None, id="nothing"),
        pytest.param(thread(kernel=[normal()], **RUNNING), None, id="running"),
        pytest.param(unreadable(kernel_apc_disable=-1), None, id="the head unreadable"),
    ],
)
def test_the_first_visible_reason(subject: Thread, expected: str | None) -> None:
    """Of the reasons not to deliver, the one that KiDeliverApc meets first is named; none where none is visible."""
    assert delivery.reason(subject, WINDOWS_10) == expected


def test_what_a_windows_lacks_is_no_reason() -> None:
    """XP has no guarded regions: a member that it lacks is 0, one that cannot be read stays unknown."""
    subject = thread(
        kernel=[special()], special_apc_disable=None, special_apc_in_progress=None, kernel_apc_disable=None
    )
    assert delivery.member(subject, "special_apc_disable", WINDOWS_XP) == 0
    assert delivery.member(subject, "special_apc_disable", WINDOWS_10) is None
    assert delivery.member(subject, "kernel_apc_disable", WINDOWS_XP) is None


UNKNOWN = st.none()
COUNTER = UNKNOWN | st.integers(-3, 0)
FLAG = UNKNOWN | st.integers(0, 1)


@given(
    routine=st.sampled_from([None, NO_ROUTINE, normal().normal_routine]),
    members=st.fixed_dictionaries(
        {
            "state": UNKNOWN | st.integers(0, 9),
            "wait_irql": UNKNOWN | st.integers(0, 2),
            "kernel_apc_disable": COUNTER,
            "special_apc_disable": COUNTER,
            "kernel_apc_in_progress": FLAG,
            "special_apc_in_progress": FLAG,
        }
    ),
)
def test_a_reason_excludes_deliverable(routine: Any, members: dict[str, Any]) -> None:
    """What is said to be deliverable has no visible reason to wait, and no value is needed that is unknown."""
    subject = thread(kernel=[special(normal_routine=routine)], **members)
    if delivery.deliverable(subject, WINDOWS_10):
        assert delivery.reason(subject, WINDOWS_10) is None
        assert None not in (members["state"], members["wait_irql"], members["special_apc_disable"])
