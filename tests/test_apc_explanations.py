"""What the explanation of a finding about an APC tells."""

from __future__ import annotations

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_apc
from volatility3.plugins.windows.apcaudit.model import Apc

from tests.situations_pure import (
    IN_POOL,
    IN_UNLOADED,
    THREAD,
    WINDOWS_10,
    normal,
    special,
    thread,
)


@pytest.mark.parametrize(
    ("apc", "code_name", "values"),
    [
        pytest.param(
            special(kernel_routine=IN_POOL), "routine-unbacked", ["KernelRoutine", "0xffff8a0000345000"], id="one"
        ),
        pytest.param(
            normal(rundown_routine=IN_POOL, normal_routine=IN_POOL),
            "routine-unbacked",
            ["RundownRoutine", "NormalRoutine"],
            id="two routines",
        ),
        pytest.param(
            special(thread=0xFFFF8A0000999080), "thread-mismatch", ["0xffff8a0000999080", f"{THREAD:#x}"], id="thread"
        ),
        pytest.param(special(type=19, size=0x30), "bad-object", ["19", "18", "0x30", "0x58"], id="object"),
        pytest.param(
            special(kernel_routine=IN_UNLOADED),
            "routine-unloaded",
            ["Bfilter.sys", "0xfffff80005550000"],
            id="unloaded",
        ),
        pytest.param(special(misplaced="user space"), "apc-outside-pool", ["user space"], id="place"),
        pytest.param(special(apc_state_index=2), "environment-mismatch", ["2", "0"], id="environment"),
        pytest.param(
            special(also_on="the user list of thread 0x1"), "duplicate-apc", ["the user list of thread 0x1"], id="lists"
        ),
    ],
)
def test_an_explanation_gives_the_values(apc: Apc, code_name: str, values: list[str]) -> None:
    """An explanation holds the values that led to the finding."""
    subject = thread(kernel=[apc])
    findings = check_apc(subject.queues[0].apcs[0], subject, WINDOWS_10)
    (explanation,) = [finding.explanation for finding in findings if finding.code == code_name]
    assert [value for value in values if value not in explanation] == []
    assert not explanation.endswith(".")
