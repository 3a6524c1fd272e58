"""What the headers of a crash dump tell where the kernel's symbols are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.dumps.header_facts import HeaderFacts, read_header_facts
from volatility3.plugins.windows.apcaudit.model import BugCheck

from tests.minidump_builder import FILETIME_2021, DriverEntry, MinidumpScene, write_minidump
from tests.minidump_machine import MACHINES, PRCB_NUMBER, Machine


def facts_of(data: bytes) -> HeaderFacts | None:
    return read_header_facts(lambda offset, length: data[offset : offset + length], len(data))


def facts(machine: Machine, processor: int = 0, **header: int) -> HeaderFacts:
    """The facts of the machine's minidump with these fields of the header."""
    made = machine.scene()
    prcb = bytearray(made.prcb)
    prcb[PRCB_NUMBER] = processor
    found = facts_of(write_minidump(replace(made, prcb=bytes(prcb), header={**made.header, **header})))
    assert found is not None
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_a_minidump(machine: Machine) -> None:
    """Bugcheck, time, uptime, version by the build, processors and drivers stand in the headers."""
    found = facts(machine, 5, BugCheckCode=0x1000007E, BugCheckParameter2=machine.base + 0x1000010, NumberProcessors=8)
    assert found.bugcheck == BugCheck(0x7E, (0, machine.base + 0x1000010, 0, 0), "dump header")
    assert (found.system_time, found.bits, found.processors) == (FILETIME_2021, 64 if machine.is_64bit else 32, 8)
    assert found.version == ((10, 0, 19041) if machine.is_64bit else (5, 1, 2600))
    assert [each.base for each in found.drivers] == [machine.base, machine.base + 0x1000000]
    assert [each.name for each in found.unloaded] == ["Cdaudio.SYS"]
    assert found.partial
    assert found.crash is not None
    assert f"{machine.base + 0x1000010:#x} (address of the exception: Bfilter+0x10)" in found.crash
    assert found.crash.endswith("processor 5 (8 processors)")


@pytest.mark.parametrize(
    ("processor", "count", "text"),
    [
        pytest.param(9, 8, "8 processors", id="a number that none of them has"),
        pytest.param(5, 300, "300 processors", id="more than a byte counts"),
        pytest.param(5, 1, "processor 0 (1 processor)", id="one"),
        pytest.param(0, 0, "processors unknown", id="none"),
    ],
)
def test_the_processor(processor: int, count: int, text: str) -> None:
    """The processor is the one of the dump's KPRCB, unless that contradicts how many there are."""
    assert (facts(Machine(True), processor, NumberProcessors=count).crash or "").endswith(f", {text}")


@pytest.mark.parametrize(
    ("code", "attributes"),
    [
        pytest.param(0, 0, id="no code"),
        pytest.param(0x4D415454, 0, id="the code that DumpIt writes"),
        # DUMP_FILE_ATTRIBUTES: LiveDumpGeneratedDump (mindumpdef.h).
        pytest.param(0x161, 0x10, id="a live kernel dump"),
    ],
)
def test_a_machine_that_ran(code: int, attributes: int) -> None:
    """A dump of a running machine has no bugcheck, and no line on one."""
    found = facts(Machine(True), BugCheckCode=code, Attributes=attributes)
    assert (found.bugcheck, found.crash) == (None, None)
    assert found.system_time == FILETIME_2021


def test_code_of_the_kernel_and_of_no_driver() -> None:
    """Code in the kernel is nt's; an address in no driver is a number."""
    machine = Machine(True)
    for address, text in (
        (machine.base + 0x20, f"{machine.base + 0x20:#x} (instruction: nt+0x20)"),
        (0x10, "0x10 (instruction)"),
    ):
        assert text in (facts(machine, BugCheckCode=0xD1, BugCheckParameter4=address).crash or "")


def test_a_name_that_could_move_the_cursor() -> None:
    """Names of drivers are escaped: they may be anybody's."""
    machine = Machine(True)
    driver = DriverEntry("\\a\x1b[2J.sys", machine.base + 0x5000000, 0x1000)
    made = machine.scene()
    header = {**made.header, "BugCheckCode": 0xD1, "BugCheckParameter4": driver.base}
    found = facts_of(write_minidump(replace(made, drivers=(*made.drivers, driver), header=header)))
    assert found is not None
    assert r"(instruction: a\x1b[2J+0x0)" in (found.crash or "")


def test_a_minidump_that_is_cut() -> None:
    """Of a file that ends behind its header, the header's facts are there, without drivers."""
    data = write_minidump(Machine(True).scene())
    found = facts_of(data[:0x2000])
    assert found is not None
    assert (found.bugcheck, found.drivers, found.partial) == (BugCheck(6, (0, 0, 0, 0), "dump header"), (), True)
    assert facts_of(data[:0x1FFF]) is None
    assert facts_of(bytes(0x3000)) is None


@pytest.mark.parametrize("dump_type", [1, 2, 5, 6])
def test_other_crash_dumps(dump_type: int) -> None:
    """A complete, kernel or active dump has the same header; its drivers are in its memory only."""
    scene = MinidumpScene(is_64bit=True, kern_base=1 << 63, header={"DumpType": dump_type, "BugCheckCode": 0xEF})
    found = facts_of(write_minidump(scene))
    assert found is not None
    assert (found.partial, found.drivers) == (False, ())
    assert (found.crash or "").startswith("bugcheck 0xef (CRITICAL_PROCESS_DIED), parameters 0x0, 0x0, 0x0, 0x0; 2021-")


def test_the_genuine_sample(shared: Path) -> None:
    """The genuine minidump: an access violation in amdppm, four seconds after the start."""
    found = facts_of((shared / "samples" / "triage_x64.dmp").read_bytes())
    assert found is not None
    # As WinDbg shows them: 7E, {ffffffffc0000005, fffff8048b58334c, ffff850429891ee8, ffff850429891720}.
    assert found.bugcheck is not None
    assert found.bugcheck.parameters == (
        0xFFFFFFFFC0000005,
        0xFFFFF8048B58334C,
        0xFFFF850429891EE8,
        0xFFFF850429891720,
    )
    assert found.up_time == 37470697
    assert (len(found.drivers), len(found.unloaded), found.version) == (151, 4, (10, 0, 19041))
    assert "(exception: STATUS_ACCESS_VIOLATION)" in (found.crash or "")
    assert "2021-02-21 01:38:22 UTC, up 0 days 0:00:03" in (found.crash or "")
