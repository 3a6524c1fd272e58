"""The finding about a queued APC that no list holds, and when its absence says nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_apc
from volatility3.plugins.windows.apcaudit.model import Ending, QueueName, Thread

from tests.situations_pure import (
    KERNEL_HEAD,
    RUNNING,
    TERMINATED,
    WINDOWS_10,
    damaged_queue,
    severities,
    special,
    thread,
    user,
)


def test_off_the_lists_nothing_is_expected_of_list_and_environment() -> None:
    """A queued APC that no list holds is that finding alone: nothing in it contradicts a list or an environment."""
    apc = replace(user(), queue=QueueName.OFF_LIST, apc_state_index=1)
    assert severities(check_apc(apc, thread(), WINDOWS_10)) == {"off-list-apc": "high"}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(thread(**RUNNING), {"off-list-apc": "high"}, id="running"),
        pytest.param(thread(terminated=1), {"off-list-apc": "high"}, id="marked for termination, and still live"),
        pytest.param(thread(**TERMINATED), {}, id="ended"),
        pytest.param(thread(state=None), {}, id="nobody knows whether it has ended"),
        pytest.param(
            thread(damaged=[damaged_queue(Ending.CLOSED, broken_at=KERNEL_HEAD)]),
            {"off-list-apc": "high"},
            id="a list read to its end by its Flinks, with a Blink that disagrees: one-sided unlinking leaves that",
        ),
        *(
            pytest.param(thread(damaged=[damaged_queue(ending)]), {}, id=f"it may hang where {ending.value}")
            for ending in Ending
            if ending is not Ending.CLOSED
        ),
    ],
)
def test_off_the_lists_of_which_thread(subject: Thread, expected: dict[str, str]) -> None:
    """A queued APC is missing from the lists only of a live thread, and only where they were read to their end."""
    apc = replace(special(), queue=QueueName.OFF_LIST, apc_state_index=0)
    assert severities(check_apc(apc, subject, WINDOWS_10)) == expected
