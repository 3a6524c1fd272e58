"""What the headers of a crash dump tell without the kernel's symbols."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ..formats.crash_header import DUMP_HEADER64_SIZE, DUMP_TYPE_TRIAGE, HEADER, CrashHeader, parse_crash_header
from ..formats.files import ReadFile
from ..formats.text import printable
from ..formats.triage import DumpDriver, DumpUnloadedDriver, Minidump, MinidumpError, parse_minidump
from ..formats.triage_header import TRIAGE_DUMP_PRCB
from ..model import BugCheck
from ..windows import version_of_build
from .bugcheck_line import Circumstances, bugcheck_line

# The code that DumpIt writes into the header of a dump of a running machine, "MATT".
_OF_ACQUISITION = frozenset({0x4D415454})

# KPRCB.Number is a byte up to Vista. Its low byte is the same later, and enough where there are no more processors.
_BYTE_PROCESSORS = 256


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """The facts; times in FILETIME ticks of 100 ns, None where unknown.

    `bugcheck` is None where the header says that the machine was running; `crash` is the line on it. `version` is
    (major, minor, build), by the build in the header. `partial` is whether the dump is a minidump, which alone has
    `drivers` and `unloaded`.
    """

    bugcheck: BugCheck | None
    crash: str | None
    system_time: int | None
    up_time: int | None
    version: tuple[int, int, int] | None
    bits: int
    processors: int
    partial: bool
    drivers: tuple[DumpDriver, ...]
    unloaded: tuple[DumpUnloadedDriver, ...]


def read_header_facts(read: ReadFile, size: int) -> HeaderFacts | None:
    """Read the headers of a crash dump of `size` bytes; None if the file is no crash dump."""
    header = parse_crash_header(read(0, DUMP_HEADER64_SIZE))
    if header is None:
        return None
    dump = None
    if header.dump_type == DUMP_TYPE_TRIAGE:
        with suppress(MinidumpError):
            dump = parse_minidump(read, size)
    bugcheck = bugcheck_of(header)
    processor = None if dump is None else crashed_processor(dump, read)
    crash = None
    if bugcheck is not None:
        at = circumstances(header, processor)
        crash = bugcheck_line(bugcheck, at, lambda address: None if dump is None else name_code(dump, address))
    return HeaderFacts(
        bugcheck=bugcheck,
        crash=crash,
        system_time=header.system_time,
        up_time=header.system_up_time,
        version=header_version(header),
        bits=64 if header.is_64bit else 32,
        processors=header.number_processors,
        partial=header.dump_type == DUMP_TYPE_TRIAGE,
        drivers=() if dump is None else dump.drivers,
        unloaded=() if dump is None else dump.unloaded_drivers,
    )


def bugcheck_of(header: CrashHeader) -> BugCheck | None:
    """Return the header's bugcheck, None where it says that the machine was running."""
    if not header.stop_code or header.is_live or header.stop_code in _OF_ACQUISITION:
        return None
    return BugCheck(header.stop_code, header.bugcheck_parameters, HEADER)


def header_version(header: CrashHeader) -> tuple[int, int, int] | None:
    """Return the version of Windows by the build in the header, MinorVersion."""
    return version_of_build(header.minor_version & 0xFFFF)


def circumstances(header: CrashHeader, processor: int | None) -> Circumstances:
    """Return when and where the machine stopped, as far as the header knows; `processor` is the one that stopped."""
    return Circumstances(
        time=header.system_time,
        up_time=header.system_up_time,
        version=header_version(header),
        bits=64 if header.is_64bit else 32,
        processor=processor,
        processors=header.number_processors,
    )


def crashed_processor(dump: Minidump, read: ReadFile) -> int | None:
    """Return the number of the processor that a minidump is of, from its copy of the _KPRCB; None if unknown."""
    header, start = dump.header, dump.triage.prcb_offset
    number = dump.debugger_data.structures.get("OffsetPrcbNumber") if dump.debugger_data else None
    if header.number_processors == 1:
        return 0
    if not start or number is None or not header.claims(TRIAGE_DUMP_PRCB):
        return None
    data = read(start + number, 1)
    known = len(data) == 1 and data[0] < header.number_processors <= _BYTE_PROCESSORS
    return data[0] if known else None


def name_code(dump: Minidump, address: int) -> str | None:
    """Name the code at an address by the drivers of a minidump, as `nt+0x1234` or `tcpip+0x1234`."""
    for driver in dump.drivers:
        if driver.base <= address < driver.base + driver.size and driver.name is not None:
            name = "nt" if driver == dump.kernel else printable(driver.name.rsplit("\\")[-1].rpartition(".")[0])
            return f"{name or printable(driver.name)}+{address - driver.base:#x}"
    return None
