"""The headers of a minidump: TRIAGE_DUMP32/64 and the debugger data block, KDDEBUGGER_DATA64."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

TRIAGE_DUMP_VALID = b"TRGD"

# Bits of DUMP_HEADER.MiniDumpFields: the parts that the writer filled in.
TRIAGE_DUMP_CONTEXT = 0x0001
TRIAGE_DUMP_EXCEPTION = 0x0002
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
    """The fields of TRIAGE_DUMP32/64 in file order; offsets are from the start of the file, sizes in bytes."""

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
    architecture_specific: bytes
    data_page_address: int
    data_page_offset: int
    data_page_size: int
    debugger_data_offset: int
    debugger_data_size: int
    data_blocks_offset: int
    data_blocks_count: int


# Both have 18 ULONGs from ServicePackBuild to TriageOptions, then pointers of the machine's size. The 64-bit one has
# 16 bytes of "architecture specific" fields (Itanium's backing store) before the data page, the 32-bit one none.
_TRIAGE_DUMP32 = struct.Struct("<18I I 0s III II II")
_TRIAGE_DUMP64 = struct.Struct("<18I Q 16s QII II II")


def triage_header_size(is_64bit: bool) -> int:
    """Return the size of TRIAGE_DUMP32 or TRIAGE_DUMP64 in bytes."""
    return (_TRIAGE_DUMP64 if is_64bit else _TRIAGE_DUMP32).size


def parse_triage_header(data: bytes, is_64bit: bool) -> TriageHeader | None:
    """Decode the bytes that follow the crash header; None if there are too few."""
    layout = _TRIAGE_DUMP64 if is_64bit else _TRIAGE_DUMP32
    if len(data) < layout.size:
        return None
    return TriageHeader(*layout.unpack_from(data))


OWNER_TAG = b"KDBG"
OWNER_TAG_OFFSET = 0x10
SIZE_OFFSET = 0x14
KERN_BASE_OFFSET = 0x18

# Members that hold the address of the nt variable of the same name. Members that hold a value instead are left out, and
# those that hold the address of something else (NtBuildLab: of NtBuildLabEx on Windows 10; KdPrintCircularBuffer: of
# the buffer and not of the pointer with that name).
VARIABLES = (
    ("PsLoadedModuleList", 0x048),
    ("PsActiveProcessHead", 0x050),
    ("PspCidTable", 0x058),
    ("ExpSystemResourcesList", 0x060),
    ("KeTimeIncrement", 0x078),
    ("KeBugCheckCallbackListHead", 0x080),
    ("IopErrorLogListHead", 0x090),
    ("ObpRootDirectoryObject", 0x098),
    ("ObpTypeObjectType", 0x0A0),
    ("MmPfnDatabase", 0x0C0),
    ("MmHighestUserAddress", 0x1C8),
    ("MmSystemRangeStart", 0x1D0),
    ("MmUserProbeAddress", 0x1D8),
    ("KiProcessorBlock", 0x218),
    ("MmUnloadedDrivers", 0x220),
    ("MmLastUnloadedDriver", 0x228),
    ("MmSpecialPoolTag", 0x238),
    ("KernelVerifier", 0x240),
    ("MmVerifierData", 0x248),
    ("CmNtCSDVersion", 0x268),
    ("MmPhysicalMemoryBlock", 0x270),
)
NT_BUILD_LAB_OFFSET = 0x208

# Sizes and offsets of kernel structures, present since Windows XP.
STRUCTURES = (
    ("OffsetKThreadApcProcess", 0x2A0),
    ("SizeEProcess", 0x2A8),
    ("SizePrcb", 0x2B0),
    ("OffsetPrcbCurrentThread", 0x2B4),
    ("OffsetPrcbNumber", 0x2BE),
    ("SizeEThread", 0x2C0),
)


@dataclass(frozen=True, slots=True)
class DebuggerData:
    """The contents of KDDEBUGGER_DATA64; members that are 0 or beyond its Size are missing from the mappings."""

    kern_base: int
    variables: Mapping[str, int]
    structures: Mapping[str, int]
    nt_build_lab: int | None


def parse_debugger_data(data: bytes, is_64bit: bool) -> DebuggerData | None:
    """Decode a KDDEBUGGER_DATA64; None if it lacks the tag KDBG or its KernBase is 0."""
    if data[OWNER_TAG_OFFSET:SIZE_OFFSET] != OWNER_TAG:
        return None
    size = min(len(data), int.from_bytes(data[SIZE_OFFSET:KERN_BASE_OFFSET], "little"))
    mask = (1 << (64 if is_64bit else 32)) - 1

    def pointer(offset: int) -> int:
        return struct.unpack_from("<Q", data, offset)[0] & mask if offset + 8 <= size else 0

    def short(offset: int) -> int:
        return int(struct.unpack_from("<H", data, offset)[0]) if offset + 2 <= size else 0

    kern_base = pointer(KERN_BASE_OFFSET)
    if not kern_base:
        return None
    variables = {name: value for name, offset in VARIABLES if (value := pointer(offset))}
    structures = {name: value for name, offset in STRUCTURES if (value := short(offset))}
    return DebuggerData(kern_base, variables, structures, pointer(NT_BUILD_LAB_OFFSET) or None)
