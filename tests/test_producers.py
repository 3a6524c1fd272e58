"""The kernel's own producers of APCs, by the names that an address has."""

from __future__ import annotations

import pytest
from volatility3.plugins.windows.apcaudit.origin.producers import PRODUCERS, producers


@pytest.mark.parametrize(
    ("kernel", "normal", "mode", "expected"),
    [
        (("IopDeallocateApc", "PspUserApcKernelRoutine", "AlpcpFreeBuffer"), (), 1, ("NtQueueApcThread",)),
        (("IopDeallocateApc", "PspUserApcKernelRoutine"), ("IopRaiseHardError",), 0, ("I/O hard error",)),
        (("IopDeallocateApc", "PspUserApcKernelRoutine"), (), 0, ()),
        (
            ("KiSchedulerApcNop", "MiDummyApcRoutine"),
            ("KiSchedulerApc",),
            0,
            ("suspension, freezing, preemption or termination of the thread",),
        ),
        (("KiSchedulerApcNop", "MiDummyApcRoutine"), (), 0, ()),
        ((), (), None, ()),
    ],
)
def test_folded_routines(
    kernel: tuple[str, ...], normal: tuple[str, ...], mode: int | None, expected: tuple[str, ...]
) -> None:
    """Where the linker folded routines, ApcMode and NormalRoutine decide; where they cannot, nobody is named."""
    assert tuple(row.meaning for row in producers(kernel, normal, mode)) == expected


def test_rows_are_reachable() -> None:
    """Every row is found by its own name, in the mode that it is for."""
    assert {row for row in PRODUCERS if row not in producers((row.routine,), (), row.mode)} == set()
