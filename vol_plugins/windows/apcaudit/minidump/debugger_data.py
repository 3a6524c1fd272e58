"""KDDEBUGGER_DATA64, the kernel's note to debuggers: its base, and the addresses of its best known variables.

Source of the offsets: `KDDEBUGGER_DATA64` of wdbgexts.h (Windows SDK), the same as `_KDDEBUGGER_DATA64` of
Volatility 3 (symbols/windows/kdbg.json). The structure only ever grew at its end, and is the same on x86, where it
holds pointers sign-extended to 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

OWNER_TAG = b"KDBG"
OWNER_TAG_OFFSET = 0x10
SIZE_OFFSET = 0x14
KERN_BASE_OFFSET = 0x18

# Members that hold the address of the nt variable of the same name. Left out are those that hold a value instead, or
# whose namesake in the PDB is something else (NtBuildLab points to NtBuildLabEx on Windows 10, KdPrintCircularBuffer
# to the buffer and not to the pointer of that name).
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
    """What KDDEBUGGER_DATA64 states; a member that it does not reach or that is 0 is missing from the mappings."""

    kern_base: int
    variables: Mapping[str, int]
    structures: Mapping[str, int]
    nt_build_lab: int | None


def parse_debugger_data(data: bytes, is_64bit: bool) -> DebuggerData | None:
    """Decode a KDDEBUGGER_DATA64; None if its tag or its kernel base is missing."""
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
