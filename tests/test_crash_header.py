"""Crash dump headers: what Windows writes, and what is no header."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.formats.crash_header import parse_crash_header

from tests.minidump_builder import FILETIME_2021, MinidumpScene, write_minidump

SAMPLE = Path(__file__).parents[1] / ".." / "shared" / "samples" / "triage_x64.dmp"


def file_with(is_64bit: bool, **header: int) -> bytes:
    base = 0xFFFFF80000000000 if is_64bit else 0x804D7000
    return write_minidump(MinidumpScene(is_64bit=is_64bit, kern_base=base, header=header))


@pytest.mark.parametrize("is_64bit", [True, False])
def test_bugcheck_and_lists(is_64bit: bool) -> None:
    """Bugcheck, parameters and list heads are those of the header of either width."""
    header = parse_crash_header(
        file_with(
            is_64bit,
            BugCheckCode=0x20,
            BugCheckParameter1=0x8A3F6248,
            BugCheckParameter2=0xFFFF,
            BugCheckParameter4=3,
            PsLoadedModuleList=0x80554040,
            PsActiveProcessHead=0x8055B158,
            KdDebuggerDataBlock=0x80545AE0,
            NumberProcessors=4,
            MinorVersion=2600,
        )
    )
    assert header is not None
    assert header.is_64bit is is_64bit
    assert header.bugcheck_code == header.stop_code == 0x20
    assert header.bugcheck_parameters == (0x8A3F6248, 0xFFFF, 0, 3)
    assert header.ps_loaded_module_list == 0x80554040
    assert header.ps_active_process_head == 0x8055B158
    assert header.kd_debugger_data_block == 0x80545AE0
    assert (header.number_processors, header.minor_version, header.dump_type) == (4, 2600, 4)
    assert header.system_time == FILETIME_2021


@pytest.mark.parametrize(("written", "expected"), [(0, False), (1, True), (ord("P"), None)])
def test_pae_enabled(written: int, expected: bool | None) -> None:
    """PaeEnabled of a 32-bit header is a flag; the fill byte means that nobody set it."""
    header = parse_crash_header(file_with(False, PaeEnabled=written))
    assert header is not None
    assert header.pae_enabled is expected


@pytest.mark.parametrize("is_64bit", [True, False])
def test_exception_record(is_64bit: bool) -> None:
    """The exception record has code, address and as many parameters as it counts, at most 15."""
    code, address = 0xC0000005, 0x8058334C
    header = parse_crash_header(
        file_with(is_64bit, ExceptionCode=code, ExceptionAddress=address, ExceptionParameterCount=99)
    )
    assert header is not None
    assert header.exception is not None
    assert (header.exception.code, header.exception.address) == (code, address)
    assert len(header.exception.parameters) == 15


def test_fields_left_unset_are_unknown() -> None:
    """A field that still has the fill pattern PAGE was never written: it is None, not a number."""
    fill = int.from_bytes(b"PAGE", "little")
    header = parse_crash_header(
        file_with(True, ProductType=fill, MiniDumpFields=fill, SystemTime=int.from_bytes(b"PAGEPAGE", "little"))
    )
    assert header is not None
    assert (header.product_type, header.mini_dump_fields, header.system_time) == (None, None, None)
    assert header.exception is None


@pytest.mark.parametrize(("code", "stop_code"), [(0x1000007E, 0x7E), (0x7E, 0x7E), (0xC000021A, 0xC000021A)])
def test_stop_code_of_a_minidump(code: int, stop_code: int) -> None:
    """0x1000007E is how a minidump reports bugcheck 0x7E."""
    header = parse_crash_header(file_with(True, BugCheckCode=code))
    assert header is not None
    assert header.stop_code == stop_code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAGEDU64",
        b"PAGEDUMP" + bytes(0xFF7),
        b"PAGEDU64" + bytes(0x1FF7),
        b"PAGEXXXX" + bytes(0x2000),
        bytes(0x2000),
    ],
)
def test_no_header(data: bytes) -> None:
    """A wrong signature or too few bytes are no header."""
    assert parse_crash_header(data) is None


def test_genuine_header() -> None:
    """The header of a genuine Windows 10 minidump, as a debugger prints it."""
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE.name} is missing")
    header = parse_crash_header(SAMPLE.read_bytes()[:0x2000])
    assert header is not None
    assert (header.bugcheck_code, header.stop_code) == (0x1000007E, 0x7E)
    assert header.bugcheck_parameters == (
        0xFFFFFFFFC0000005,
        0xFFFFF8048B58334C,
        0xFFFF850429891EE8,
        0xFFFF850429891720,
    )
    assert (header.minor_version, header.number_processors, header.machine_image_type) == (19041, 16, 0x8664)
    assert header.directory_table_base == 0x1AD000
    assert header.pae_enabled is None
