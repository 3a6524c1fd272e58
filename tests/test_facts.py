"""What Windows guarantees, compared with genuine symbol files and with documented values."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit import windows as facts
from volatility3.plugins.windows.apcaudit.dumps.bugcheck_line import bugcheck_name

BUILDS = [
    "6.0.6002.18005-x64",
    "6.1.7601.17514-x86",
    "6.3.9600.17415-x64",
    "10.0.10240.16384-x64",
    "10.0.19041.264-x64",
    "10.0.22621.382-x64",
    "10.0.26100.1742-x64",
]


def enumeration(shared: Path, build: str, name: str) -> dict[int, set[str]]:
    """Return number and names of an enumeration of a genuine kernel."""
    isf: dict[str, Any] = json.loads(lzma.decompress((shared / "layouts" / f"{build}.json.xz").read_bytes()))
    names: dict[int, set[str]] = {}
    for constant, value in isf["enums"][name]["constants"].items():
        names.setdefault(value, set()).add(constant)
    return names


# The public symbols of 7 do not enumerate the states.
@pytest.mark.parametrize("build", ["5.2.3790.3959-x86", *(build for build in BUILDS if not build.startswith("6.1"))])
def test_thread_states_are_those_of_the_symbols(shared: Path, build: str) -> None:
    """Every _KTHREAD.State of a genuine kernel has its name, but for one that is obsolete there."""
    for value, names in enumeration(shared, build, "_KTHREAD_STATE").items():
        assert {facts.state_name(value), f"{facts.state_name(value)}Obsolete"} & names


# Names that Windows itself took back or filled later.
RENAMED = {"Spare", "WrSpare", "Maximum"}


@pytest.mark.parametrize("build", BUILDS)
def test_wait_reasons_are_those_of_the_symbols(shared: Path, build: str) -> None:
    """Every _KTHREAD.WaitReason of a genuine kernel has its name, but for spares."""
    for value, names in enumeration(shared, build, "_KWAIT_REASON").items():
        if not any(name.startswith(tuple(RENAMED)) for name in names):
            assert facts.wait_reason_name(value) in names


@pytest.mark.parametrize("build", ["5.2.3790.3959-x86", *BUILDS])
def test_object_types_are_those_of_the_symbols(shared: Path, build: str) -> None:
    """ApcObject and ThreadObject have one number in every version."""
    names = enumeration(shared, build, "_KOBJECTS")
    assert "ApcObject" in names[facts.APC_OBJECT]
    assert "ThreadObject" in names[facts.THREAD_OBJECT]


def test_named_states_are_those_of_the_table() -> None:
    """A state's constant and its place in the table agree."""
    assert facts.state_name(facts.INITIALIZED) == "Initialized"
    assert facts.state_name(facts.RUNNING) == "Running"
    assert facts.state_name(facts.TERMINATED) == "Terminated"
    assert facts.state_name(facts.WAITING) == "Waiting"
    assert facts.state_name(facts.GATE_WAIT) == "GateWait"
    assert facts.state_name(facts.IN_SWAP) == "WaitingForProcessInSwap"


@pytest.mark.parametrize(
    ("state", "waits"), [(5, True), (8, True), (9, False), (2, False), (1, False), (6, False), (4, False)]
)
def test_states_of_a_wait(state: int, waits: bool) -> None:
    """A thread waits in Waiting and GateWait; one that awaits its process's pages has had its wait ended."""
    assert (state in facts.WAITING_STATES) is waits


@pytest.mark.parametrize(("number", "state", "reason"), [(99, "State99", "Reason99"), (-1, "State-1", "Reason-1")])
def test_unknown_numbers_stay_numbers(number: int, state: str, reason: str) -> None:
    """A state or reason without a name is shown by its number."""
    assert (facts.state_name(number), facts.wait_reason_name(number)) == (state, reason)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x6, "0x6 (INVALID_PROCESS_DETACH_ATTEMPT)"),
        (0x20, "0x20 (KERNEL_APC_PENDING_DURING_EXIT)"),
        (0x1, "0x1 (APC_INDEX_MISMATCH)"),
        (0xD1, "0xd1 (DRIVER_IRQL_NOT_LESS_OR_EQUAL)"),
        (0x1A, "0x1a (MEMORY_MANAGEMENT)"),
        (0x8E, "0x8e (KERNEL_MODE_EXCEPTION_NOT_HANDLED)"),
        (0xEF, "0xef (CRITICAL_PROCESS_DIED)"),
        (0x10E, "0x10e (VIDEO_MEMORY_MANAGEMENT_INTERNAL)"),
        (0x133, "0x133 (DPC_WATCHDOG_VIOLATION)"),
        (0x154, "0x154 (UNEXPECTED_STORE_EXCEPTION)"),
        (0x1C8, "0x1c8 (MANUALLY_INITIATED_POWER_BUTTON_HOLD)"),
        (0x20001, "0x20001 (HYPERVISOR_ERROR)"),
        (0xC000021A, "0xc000021a (WINLOGON_FATAL_ERROR)"),
        (0x12345678, "0x12345678"),
    ],
)
def test_stop_codes(code: int, name: str) -> None:
    """A stop code has the name that Microsoft's reference gives it, an unknown one its number."""
    assert bugcheck_name(code) == name


@pytest.mark.parametrize(
    ("build", "version"),
    [
        (2600, (5, 1, 2600)),
        (3790, (5, 2, 3790)),
        (6002, (6, 0, 6002)),
        (7601, (6, 1, 7601)),
        (9200, (6, 2, 9200)),
        (9600, (6, 3, 9600)),
        (10240, (10, 0, 10240)),
        (26100, (10, 0, 26100)),
        (1381, None),
        (0, None),
    ],
)
def test_versions_by_build(build: int, version: tuple[int, int, int] | None) -> None:
    """A build belongs to the version whose first build is the highest that is not above it."""
    assert facts.version_of_build(build) == version


def encode(routine: int) -> int:
    """Encode a 32-bit routine as wow64.dll does: -(routine << 2)."""
    return -(routine << 2) & 0xFFFFFFFFFFFFFFFF


@pytest.mark.parametrize(
    ("address", "encoded"),
    [
        pytest.param(encode(0x77A51234), True, id="ntdll32"),
        pytest.param(encode(0xFFFF0000), True, id="the top of 4 GB"),
        pytest.param(encode(0x00401003), True, id="an odd routine"),
        pytest.param(encode(0x00010000), False, id="below what images are loaded at: the HAL's region"),
        pytest.param(0xFFFFFFFFFFD00010, False, id="the HAL's heap"),
        pytest.param(0xFFFFF8000020A5C0, False, id="nt"),
        pytest.param(0xFFFF8A0000345000, False, id="pool"),
        pytest.param(encode(0x77A51234) + 1, False, id="no multiple of four"),
        pytest.param(0x00007FF612340000, False, id="user space"),
        pytest.param(0x8053CA00, False, id="a 32-bit kernel address"),
        pytest.param(0, False, id="null"),
    ],
)
def test_routines_of_wow64_threads(address: int, encoded: bool) -> None:
    """A user APC to a 32-bit thread carries a routine that looks like a kernel address."""
    assert facts.is_wow64_encoded(address) is encoded


def test_apc_names_of_folded_code() -> None:
    """Of the names of a folded routine, those that an APC can mean are known by a part of them."""
    meant = ("KiSchedulerApcNop", "IopCompleteRequest", "ExpTimerApcRoutine", "KiSuspendThread", "IopUserRundown")
    other = ("HalpNoOp", "KeRaiseUserException", "PpmIdleDefaultComplete")
    assert [name for name in (*meant, *other) if any(part in name for part in facts.APC_NAME_PARTS)] == [*meant]
