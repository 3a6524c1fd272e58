"""Full crash dumps (DumpType 1): the header in front of physical memory.

Source of the offsets: Volatility's crash.json and crash64.json; of CONTEXT and EXCEPTION_RECORD: winnt.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from apcaudit.synthetic.pages import PAGE


@dataclass(frozen=True, slots=True)
class DumpFacts:
    """What the header says about the machine; addresses are virtual, runs are (first page, pages)."""

    is_64bit: bool
    pae: bool
    build: int
    directory_table_base: int
    module_list: int
    process_head: int
    data_block: int
    processors: int
    bugcheck_code: int
    bugcheck_parameters: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    instruction: int
    stack: int
    system_time: int
    up_time: int
    registers: Mapping[str, int] = field(default_factory=dict)


#: (name, offset, format) of DUMP_HEADER and DUMP_HEADER64; P is pointer-sized there already.
_HEADER32: tuple[tuple[str, int, str], ...] = (
    ("Signature", 0x0, "8s"),
    ("MajorVersion", 0x8, "I"),
    ("MinorVersion", 0xC, "I"),
    ("DirectoryTableBase", 0x10, "I"),
    ("PfnDataBase", 0x14, "I"),
    ("PsLoadedModuleList", 0x18, "I"),
    ("PsActiveProcessHead", 0x1C, "I"),
    ("MachineImageType", 0x20, "I"),
    ("NumberProcessors", 0x24, "I"),
    ("BugCheckCode", 0x28, "I"),
    ("BugCheckParameter", 0x2C, "4I"),
    ("PaeEnabled", 0x5C, "B"),
    ("KdDebuggerDataBlock", 0x60, "I"),
    ("Comment", 0x820, "128s"),
    ("DumpType", 0xF88, "I"),
    ("RequiredDumpSpace", 0xFA0, "Q"),
    ("SystemUpTime", 0xFB8, "Q"),
    ("SystemTime", 0xFC0, "Q"),
)
_HEADER64: tuple[tuple[str, int, str], ...] = (
    ("Signature", 0x0, "8s"),
    ("MajorVersion", 0x8, "I"),
    ("MinorVersion", 0xC, "I"),
    ("DirectoryTableBase", 0x10, "Q"),
    ("PfnDataBase", 0x18, "Q"),
    ("PsLoadedModuleList", 0x20, "Q"),
    ("PsActiveProcessHead", 0x28, "Q"),
    ("MachineImageType", 0x30, "I"),
    ("NumberProcessors", 0x34, "I"),
    ("BugCheckCode", 0x38, "I"),
    ("BugCheckParameter", 0x40, "4Q"),
    ("KdDebuggerDataBlock", 0x80, "Q"),
    ("DumpType", 0xF98, "I"),
    ("RequiredDumpSpace", 0xFA0, "Q"),
    ("SystemTime", 0xFA8, "Q"),
    ("Comment", 0xFB0, "128s"),
    ("SystemUpTime", 0x1030, "Q"),
)
#: Where the physical memory descriptor, the context and the exception record are: x86, x64.
_RUNS = {False: 0x64, True: 0x88}
_CONTEXT = {False: 0x320, True: 0x348}
_EXCEPTION = {False: 0x7D0, True: 0xF00}

_X64_REGISTERS = ("Rax", "Rcx", "Rdx", "Rbx", "Rsp", "Rbp", "Rsi", "Rdi", *(f"R{number}" for number in range(8, 16)))

#: CONTEXT (winnt.h): flags, and the registers that a scene gives, as (offset, format).
_CONTEXT_FIELDS = {
    False: {
        "ContextFlags": (0x0, "I"),
        **{name: (0x9C + 4 * at, "I") for at, name in enumerate(("Edi", "Esi", "Ebx", "Edx", "Ecx", "Eax", "Ebp"))},
        "SegCs": (0xBC, "I"),
        "Eip": (0xB8, "I"),
        "Esp": (0xC4, "I"),
        "SegSs": (0xC8, "I"),
    },
    True: {
        "ContextFlags": (0x30, "I"),
        "SegCs": (0x38, "H"),
        "SegSs": (0x42, "H"),
        **{name: (0x78 + 8 * at, "Q") for at, name in enumerate(_X64_REGISTERS)},
        "Rip": (0xF8, "Q"),
    },
}
CONTEXT_FULL = {False: 0x10007, True: 0x10000B}

#: STATUS_BREAKPOINT: what a bugcheck's own breakpoint leaves as the exception.
_STATUS_BREAKPOINT = 0x80000003
_FULL_DUMP = 1


def header(facts: DumpFacts) -> bytes:
    """Make the header: one page on x86, two on x64, unused bytes filled with PAGE as Windows does."""
    data = bytearray(b"PAGE" * (PAGE // 4 * (2 if facts.is_64bit else 1)))
    values: dict[str, tuple[object, ...]] = {
        "Signature": (b"PAGEDU64" if facts.is_64bit else b"PAGEDUMP",),
        "MajorVersion": (0xF,),
        "MinorVersion": (facts.build,),
        "DirectoryTableBase": (facts.directory_table_base,),
        "PfnDataBase": (0,),
        "PsLoadedModuleList": (facts.module_list,),
        "PsActiveProcessHead": (facts.process_head,),
        "MachineImageType": (0x8664 if facts.is_64bit else 0x14C,),
        "NumberProcessors": (facts.processors,),
        "BugCheckCode": (facts.bugcheck_code,),
        "BugCheckParameter": facts.bugcheck_parameters,
        "PaeEnabled": (int(facts.pae),),
        "KdDebuggerDataBlock": (facts.data_block,),
        "Comment": (b"",),
        "DumpType": (_FULL_DUMP,),
        "RequiredDumpSpace": (len(data) + sum(count for _, count in facts.runs) * PAGE,),
        "SystemTime": (facts.system_time,),
        "SystemUpTime": (facts.up_time,),
    }
    for name, offset, form in _HEADER64 if facts.is_64bit else _HEADER32:
        struct.pack_into(f"<{form}", data, offset, *values[name])
    _write_runs(data, facts)
    _write_context(data, facts)
    return bytes(data)


def _write_runs(data: bytearray, facts: DumpFacts) -> None:
    # On x64 the count of pages is 64 bits wide, behind four bytes of alignment.
    form, entry = ("<I4xQ", "<QQ") if facts.is_64bit else ("<II", "<II")
    count = struct.pack(form, len(facts.runs), sum(pages for _, pages in facts.runs))
    at = _RUNS[facts.is_64bit]
    data[at : at + len(count)] = count
    for position, run in enumerate(facts.runs):
        struct.pack_into(entry, data, at + len(count) + position * struct.calcsize(entry), *run)


def _write_context(data: bytearray, facts: DumpFacts) -> None:
    start, wide = _CONTEXT[facts.is_64bit], facts.is_64bit
    size = 1232 if wide else 716
    data[start : start + size] = bytes(size)
    registers = {
        "ContextFlags": CONTEXT_FULL[wide],
        "SegCs": 0x10 if wide else 0x8,
        "SegSs": 0x18 if wide else 0x10,
        "Rip" if wide else "Eip": facts.instruction,
        "Rsp" if wide else "Esp": facts.stack,
        **facts.registers,
    }
    for name, value in registers.items():
        offset, form = _CONTEXT_FIELDS[wide][name]
        struct.pack_into(f"<{form}", data, start + offset, value)
    at = _EXCEPTION[wide]
    data[at : at + (0x98 if wide else 0x50)] = bytes(0x98 if wide else 0x50)
    form = "<IIQQI" if wide else "<IIIII"
    struct.pack_into(form, data, at, _STATUS_BREAKPOINT, 0, 0, facts.instruction, 0)
