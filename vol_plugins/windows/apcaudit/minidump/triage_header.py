"""The second header of a kernel minidump, `TRIAGE_DUMP32` or `TRIAGE_DUMP64`: where in the file each part lies.

Source of the offsets: Dump.h (Microsoft Research, Singularity); the same as Ghidra's
ghidra.file.formats.dump.pagedump.TriageDump.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TRIAGE_DUMP_VALID = b"TRGD"

# DUMP_HEADER.MiniDumpFields tells which parts the writer filled in.
TRIAGE_DUMP_PRCB = 0x0004
TRIAGE_DUMP_PROCESS = 0x0008
TRIAGE_DUMP_THREAD = 0x0010
TRIAGE_DUMP_STACK = 0x0020
TRIAGE_DUMP_DRIVER_LIST = 0x0040
TRIAGE_DUMP_BROKEN_DRIVER = 0x0080
TRIAGE_DUMP_DATAPAGE = 0x0200
TRIAGE_DUMP_DEBUGGER_DATA = 0x0400
TRIAGE_DUMP_DATA_BLOCKS = 0x0800


@dataclass(frozen=True, slots=True)
class TriageHeader:
    """The fields of TRIAGE_DUMP32/64 in file order: offsets count from the start of the file."""

    service_pack_build: int
    size_of_dump: int
    valid_offset: int
    context_offset: int
    exception_offset: int
    mm_offset: int
    unloaded_drivers_offset: int
    prcb_offset: int
    process_offset: int
    thread_offset: int
    call_stack_offset: int
    size_of_call_stack: int
    driver_list_offset: int
    driver_count: int
    string_pool_offset: int
    string_pool_size: int
    broken_driver_offset: int
    triage_options: int
    top_of_stack: int
    data_page_address: int
    data_page_offset: int
    data_page_size: int
    debugger_data_offset: int
    debugger_data_size: int
    data_blocks_offset: int
    data_blocks_count: int


# 18 ULONGs from ServicePackBuild to TriageOptions in both. Then pointers of the machine's size, and on 64 bit
# 16 bytes of "architecture specific" fields (Itanium's backing store) before the data page.
_TRIAGE_DUMP32 = struct.Struct("<18I I III II II")
_TRIAGE_DUMP64 = struct.Struct("<18I Q 16x QII II II")


def triage_header_size(is_64bit: bool) -> int:
    """Give the size of TRIAGE_DUMP32 or TRIAGE_DUMP64 in bytes."""
    return (_TRIAGE_DUMP64 if is_64bit else _TRIAGE_DUMP32).size


def parse_triage_header(data: bytes, is_64bit: bool) -> TriageHeader | None:
    """Decode the bytes behind the crash header; None if they are too few."""
    layout = _TRIAGE_DUMP64 if is_64bit else _TRIAGE_DUMP32
    if len(data) < layout.size:
        return None
    return TriageHeader(*layout.unpack_from(data))
