"""The line on how a machine stopped: the bugcheck's parameters in words, time, uptime, version and processor."""

from __future__ import annotations

import pytest
from volatility3.plugins.windows.apcaudit.dumps.bugcheck_line import Circumstances, bugcheck_line, describe_parameters
from volatility3.plugins.windows.apcaudit.model import BugCheck

#: FILETIME of 2021-02-21 01:38:20 UTC, by hand: 18,679 days and 5,900 s behind 1970 (116444736000000000).
TIME = 116444736000000000 + (18_679 * 86_400 + 5_900) * 10_000_000

ROUTINE = 0xFFFFF80312345678


def name_code(address: int) -> str | None:
    return "tcpip+0x5678" if address == ROUTINE else None


@pytest.mark.parametrize(
    ("code", "values", "expected"),
    [
        pytest.param(
            0x1,
            (ROUTINE, 0, 0xFFFF, 1),
            f"{ROUTINE:#x} (routine: tcpip+0x5678), 0x0 (ApcStateIndex), 0xffff (CombinedApcDisable), 0x1 (call: worker"
            " routine)",
            id="0x1",
        ),
        pytest.param(
            0x5,
            (0x8A001000, 0x8A002000, 1, 0),
            "0x8a001000 (process to attach to), 0x8a002000 (process attached to), 0x1 (ApcStateIndex), 0x0 (a DPC runs:"
            " no)",
            id="0x5",
        ),
        pytest.param(
            0xA,
            (0x18, 2, 1, ROUTINE),
            f"0x18 (memory referenced), 0x2 (IRQL), 0x1 (access: write), {ROUTINE:#x} (instruction: tcpip+0x5678)",
            id="0xA",
        ),
        pytest.param(
            0xD1,
            (0x18, 2, 8, 0x1000),
            "0x18 (memory referenced), 0x2 (IRQL), 0x8 (access: execute), 0x1000 (instruction)",
            id="0xD1, code of no driver",
        ),
        pytest.param(
            0x1E,
            (0xFFFFFFFFC0000005, ROUTINE, 1, 0x28),
            f"0xffffffffc0000005 (exception: STATUS_ACCESS_VIOLATION), {ROUTINE:#x} (address of the exception:"
            " tcpip+0x5678), 0x1 (access: write), 0x28 (memory referenced)",
            id="0x1E of an access violation",
        ),
        pytest.param(
            0x1E,
            (0xC000001D, ROUTINE, 7, 9),
            f"0xc000001d (exception: STATUS_ILLEGAL_INSTRUCTION), {ROUTINE:#x} (address of the exception:"
            " tcpip+0x5678), 0x7 (parameter 0 of the exception), 0x9 (parameter 1 of the exception)",
            id="0x1E of another exception",
        ),
        pytest.param(
            0x20,
            (0x8A3F6254, 0xFFFE, 1, 0),
            "0x8a3f6254 (LIST_ENTRY of the APC), 0xfffe (CombinedApcDisable), 0x1 (IRQL), 0x0",
            id="0x20",
        ),
        pytest.param(
            0x3B,
            (0x80000003, ROUTINE, 0x1000, 0),
            f"0x80000003 (exception: STATUS_BREAKPOINT), {ROUTINE:#x} (instruction: tcpip+0x5678), 0x1000 (context"
            " record), 0x0",
            id="0x3B",
        ),
        pytest.param(
            0x50,
            (0xFFFF8000_00000000, 2, ROUTINE, 2),
            f"0xffff800000000000 (memory referenced), 0x2 (access: write), {ROUTINE:#x} (instruction: tcpip+0x5678),"
            " 0x2 (page fault: no page table)",
            id="0x50 since Windows 10",
        ),
        pytest.param(
            0x50,
            (0x1000, 1, 0, 0),
            "0x1000 (memory referenced), 0x1 (access: write), 0x0 (instruction), 0x0 (page fault: freed page table"
            " entry)",
            id="0x50 before",
        ),
        pytest.param(
            0x7E,
            (0xFFFFFFFFDEADBEEF, ROUTINE, 0x10, 0x20),
            f"0xffffffffdeadbeef (exception), {ROUTINE:#x} (address of the exception: tcpip+0x5678), 0x10 (exception"
            " record), 0x20 (context record)",
            id="0x7E, an NTSTATUS without a name",
        ),
        pytest.param(
            0x9F,
            (3, 0x10, 0x20, 0x30),
            "0x3 (a device object has blocked an IRP for too long), 0x10 (PDO of the stack), 0x20"
            " (nt!_TRIAGE_9F_POWER; the FDO before 7), 0x30 (IRP)",
            id="0x9F",
        ),
        pytest.param(0x9F, (0x77, 1, 2, 3), "0x77, 0x1, 0x2, 0x3", id="0x9F of an unknown kind"),
        pytest.param(
            0xC4,
            (0xC5, ROUTINE, 0xFFFF, 0),
            f"0xc5 (dispatch routine changed KernelApcDisable), {ROUTINE:#x} (dispatch routine: tcpip+0x5678), 0xffff"
            " (KernelApcDisable), 0x0 (before the call)",
            id="0xC4",
        ),
        pytest.param(
            0xC4,
            (0x20005, 0x10, 0x20, 0),
            "0x20005 (a DDI compliance rule violated), 0x10 (text of the rule), 0x20 (state of the rule), 0x0",
            id="0xC4, a rule",
        ),
        pytest.param(0xC4, (0xA001, 1, 2, 3), "0xa001, 0x1, 0x2, 0x3", id="0xC4 of an unknown kind"),
        pytest.param(
            0xC8,
            (0x20100, ROUTINE, 0x8A3F6248, 0),
            f"0x20100 (IRQLs: 2 now, 1 expected, kind 0), {ROUTINE:#x} (KernelRoutine: tcpip+0x5678), 0x8a3f6248"
            " (KAPC), 0x0 (NormalRoutine)",
            id="0xC8",
        ),
        pytest.param(
            0x133,
            (0, 0x501, 0x500, 0x10),
            "0x0 (a single DPC or ISR ran for too long), 0x501 (ticks that it ran), 0x500 (ticks that it may run), 0x10"
            " (nt!DPC_WATCHDOG_GLOBAL_TRIAGE_BLOCK)",
            id="0x133, one DPC",
        ),
        pytest.param(
            0x133,
            (1, 0x1E00, 0x10, 0),
            "0x1 (too long at DISPATCH_LEVEL or above, all in all), 0x1e00 (watchdog period in ticks), 0x10"
            " (nt!DPC_WATCHDOG_GLOBAL_TRIAGE_BLOCK), 0x0",
            id="0x133, all in all",
        ),
        pytest.param(
            0x139,
            (3, 0x10, 0x20, 0),
            "0x3 (corruption: LIST_ENTRY), 0x10 (trap frame), 0x20 (exception record), 0x0",
            id="0x139",
        ),
        pytest.param(
            0x1A,
            (0x41792, 0x10, 0x20, 0),
            "0x41792 (PTE corrupt), 0x10 (PTE), 0x20 (its low part), 0x0 (its high part)",
            id="0x1A",
        ),
        pytest.param(0xEF, (1, 2, 3, 4), "0x1, 0x2, 0x3, 0x4", id="a code without rows"),
        pytest.param(0x6, (0, 0, 0, 7), "0x0, 0x0, 0x0, 0x7", id="0x6 with a parameter that it does not have"),
    ],
)
def test_parameters_in_words(code: int, values: tuple[int, ...], expected: str) -> None:
    """Each parameter is its number and, where Microsoft's reference gives it one, its meaning; code is named."""
    assert describe_parameters(code, values, name_code) == f"parameters {expected}"


def test_a_bugcheck_without_parameters() -> None:
    """0x6 has none: four zeros are no news."""
    assert describe_parameters(0x6, (0, 0, 0, 0), name_code) == "no parameters"


def circumstances(**known: object) -> Circumstances:
    """Circumstances of which nothing is known but what is given."""
    unknown = {"time": None, "up_time": None, "version": None, "bits": 64, "processor": None, "processors": 0}
    return Circumstances(**(unknown | known))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        pytest.param(
            circumstances(
                time=TIME, up_time=(2 * 86400 + 3723) * 10_000_000, version=(10, 0, 19041), processor=3, processors=16
            ),
            "2021-02-21 01:38:20 UTC, up 2 days 1:02:03, Windows 10.0.19041 x64, processor 3 (16 processors)",
            id="all",
        ),
        pytest.param(
            circumstances(time=TIME, up_time=86_400 * 10_000_000, version=(5, 1, 2600), bits=32, processors=1),
            "2021-02-21 01:38:20 UTC, up 1 day 0:00:00, Windows 5.1.2600 x86, 1 processor",
            id="x86, which processor is not known",
        ),
        pytest.param(circumstances(), "time unknown, Windows of unknown build x64, processors unknown", id="nothing"),
        pytest.param(
            circumstances(time=1 << 63, processor=0),
            "time unknown, Windows of unknown build x64, processor 0 (processors unknown)",
            id="a time beyond the year 9999",
        ),
    ],
)
def test_when_and_where(at: Circumstances, expected: str) -> None:
    """Time, uptime, version, architecture and processor follow; what is not known is said, or left out."""
    line = bugcheck_line(BugCheck(0x6, (0, 0, 0, 0), "dump header"), at, name_code)
    assert line == f"bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT), no parameters; {expected}"
