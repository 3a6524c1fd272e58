"""The header of a Windows crash dump: the bugcheck and the addresses of the kernel's global lists.

Sources of the offsets: `DUMP_HEADER32` and `DUMP_HEADER64` of Dump.h (Microsoft Research, Singularity), the same as
`_DUMP_HEADER` and `_DUMP_HEADER64` of Volatility 3 (symbols/windows/crash.json, crash64.json).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = "dump header"
"""What messages call it, where they name the source of a value."""

DUMP_SIGNATURE = b"PAGE"
VALID_DUMP32 = b"DUMP"
VALID_DUMP64 = b"DU64"

DUMP_HEADER32_SIZE = 0x1000
DUMP_HEADER64_SIZE = 0x2000

DUMP_TYPE_FULL = 1
DUMP_TYPE_SUMMARY = 2
DUMP_TYPE_TRIAGE = 4
DUMP_TYPE_BITMAP_FULL = 5
DUMP_TYPE_BITMAP_KERNEL = 6

# Set in the code of some bugchecks that a minidump reports: 0x1000007E is 0x7E (Microsoft, "Bug Check Code Reference").
MINIDUMP_BUGCHECK_BIT = 0x10000000

# Bits of DUMP_FILE_ATTRIBUTES (mindumpdef.h, Windows SDK), which Windows 10 and later set.
LIVE_DUMP = 0x10
ENCRYPTED_DUMP = 0x100

DUMP_HEADER32 = (
    ("MajorVersion", 0x008, "I"),
    ("MinorVersion", 0x00C, "I"),
    ("DirectoryTableBase", 0x010, "I"),
    ("PfnDataBase", 0x014, "I"),
    ("PsLoadedModuleList", 0x018, "I"),
    ("PsActiveProcessHead", 0x01C, "I"),
    ("MachineImageType", 0x020, "I"),
    ("NumberProcessors", 0x024, "I"),
    ("BugCheckCode", 0x028, "I"),
    ("BugCheckParameter", 0x02C, "4I"),
    ("PaeEnabled", 0x05C, "B"),
    ("KdDebuggerDataBlock", 0x060, "I"),
    ("ContextRecord", 0x320, "1200s"),
    ("Exception", 0x7D0, "80s"),
    ("Attributes", 0x8A0, "I"),
    ("DumpType", 0xF88, "I"),
    ("MiniDumpFields", 0xF8C, "I"),
    ("ProductType", 0xF94, "I"),
    ("SystemUpTime", 0xFB8, "Q"),
    ("SystemTime", 0xFC0, "Q"),
)

DUMP_HEADER64 = (
    ("MajorVersion", 0x0008, "I"),
    ("MinorVersion", 0x000C, "I"),
    ("DirectoryTableBase", 0x0010, "Q"),
    ("PfnDataBase", 0x0018, "Q"),
    ("PsLoadedModuleList", 0x0020, "Q"),
    ("PsActiveProcessHead", 0x0028, "Q"),
    ("MachineImageType", 0x0030, "I"),
    ("NumberProcessors", 0x0034, "I"),
    ("BugCheckCode", 0x0038, "I"),
    ("BugCheckParameter", 0x0040, "4Q"),
    ("KdDebuggerDataBlock", 0x0080, "Q"),
    ("ContextRecord", 0x0348, "3000s"),
    ("Exception", 0x0F00, "152s"),
    ("DumpType", 0x0F98, "I"),
    ("SystemTime", 0x0FA8, "Q"),
    ("SystemUpTime", 0x1030, "Q"),
    ("MiniDumpFields", 0x1038, "I"),
    ("ProductType", 0x1040, "I"),
    ("Attributes", 0x1050, "I"),
)

# EXCEPTION_RECORD32 and EXCEPTION_RECORD64 (winnt.h): code, flags, next record, address, parameter count.
_EXCEPTION_RECORD32 = struct.Struct("<4I I 15I")
_EXCEPTION_RECORD64 = struct.Struct("<2I 2Q I4x 15Q")


@dataclass(frozen=True, slots=True)
class ExceptionRecord:
    """The exception that led to the bugcheck, as the dump header keeps it."""

    code: int
    flags: int
    address: int
    parameters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CrashHeader:
    """The fields of a crash dump's header; None where the writer of the dump left a field unset.

    Addresses are virtual, except `directory_table_base`, which is physical. Times are FILETIMEs (100 ns units).
    """

    is_64bit: bool
    major_version: int
    minor_version: int
    directory_table_base: int
    pfn_database: int
    ps_loaded_module_list: int
    ps_active_process_head: int
    machine_image_type: int
    number_processors: int
    bugcheck_code: int
    bugcheck_parameters: tuple[int, int, int, int]
    kd_debugger_data_block: int
    pae_enabled: bool | None
    dump_type: int
    mini_dump_fields: int | None
    product_type: int | None
    context_record: bytes
    exception: ExceptionRecord | None
    system_time: int | None
    system_up_time: int | None
    attributes: int | None

    @property
    def header_size(self) -> int:
        """Size of the header in bytes; the data of the dump type begins behind it."""
        return DUMP_HEADER64_SIZE if self.is_64bit else DUMP_HEADER32_SIZE

    @property
    def pointer_size(self) -> int:
        """Size in bytes of a pointer of the crashed machine."""
        return 8 if self.is_64bit else 4

    @property
    def stop_code(self) -> int:
        """The bugcheck code without the bit that marks a minidump's variant of it."""
        return self.bugcheck_code & ~MINIDUMP_BUGCHECK_BIT

    @property
    def is_live(self) -> bool:
        """Whether the machine went on running: a live kernel dump, for which the code is that of a report."""
        return bool((self.attributes or 0) & LIVE_DUMP)

    @property
    def is_encrypted(self) -> bool:
        """Whether everything behind the header is encrypted."""
        return bool((self.attributes or 0) & ENCRYPTED_DUMP)

    def claims(self, minidump_part: int) -> bool:
        """Return whether MiniDumpFields has the bit of a part; True where the writer left the field unset."""
        return self.mini_dump_fields is None or bool(self.mini_dump_fields & minidump_part)


def parse_crash_header(data: bytes) -> CrashHeader | None:
    """Decode the first bytes of a file; None if they are not a complete crash dump header."""
    is_64bit = data[:8] == DUMP_SIGNATURE + VALID_DUMP64
    if not is_64bit and data[:8] != DUMP_SIGNATURE + VALID_DUMP32:
        return None
    if len(data) < (DUMP_HEADER64_SIZE if is_64bit else DUMP_HEADER32_SIZE):
        return None
    numbers: dict[str, int | None] = {}
    blobs: dict[str, bytes] = {}
    parameters: tuple[int, ...] = ()
    for name, offset, form in DUMP_HEADER64 if is_64bit else DUMP_HEADER32:
        values = struct.unpack_from("<" + form, data, offset)
        if form.endswith("s"):
            blobs[name] = values[0]
        elif name == "BugCheckParameter":
            parameters = values
        else:
            numbers[name] = _unless_unset(values[0], struct.calcsize(form))

    def number(name: str) -> int:
        return numbers.get(name) or 0

    pae_enabled = None if is_64bit or numbers["PaeEnabled"] is None else bool(numbers["PaeEnabled"])
    return CrashHeader(
        is_64bit=is_64bit,
        major_version=number("MajorVersion"),
        minor_version=number("MinorVersion"),
        directory_table_base=number("DirectoryTableBase"),
        pfn_database=number("PfnDataBase"),
        ps_loaded_module_list=number("PsLoadedModuleList"),
        ps_active_process_head=number("PsActiveProcessHead"),
        machine_image_type=number("MachineImageType"),
        number_processors=number("NumberProcessors"),
        bugcheck_code=number("BugCheckCode"),
        bugcheck_parameters=(parameters[0], parameters[1], parameters[2], parameters[3]),
        kd_debugger_data_block=number("KdDebuggerDataBlock"),
        pae_enabled=pae_enabled,
        dump_type=number("DumpType"),
        mini_dump_fields=numbers["MiniDumpFields"],
        product_type=numbers["ProductType"],
        context_record=blobs["ContextRecord"],
        exception=_exception(blobs["Exception"]),
        system_time=numbers["SystemTime"] or None,
        system_up_time=numbers["SystemUpTime"] or None,
        attributes=numbers["Attributes"],
    )


def _unless_unset(value: int, size: int) -> int | None:
    # Windows fills the header with the signature before it writes the fields that it knows.
    return None if value == int.from_bytes((DUMP_SIGNATURE * 2)[:size], "little") else value


def _exception(record: bytes) -> ExceptionRecord | None:
    if record[:4] == DUMP_SIGNATURE or not any(record):
        return None
    layout = _EXCEPTION_RECORD64 if len(record) == _EXCEPTION_RECORD64.size else _EXCEPTION_RECORD32
    code, flags, _next, address, count, *parameters = layout.unpack(record)
    return ExceptionRecord(code, flags, address, tuple(parameters[: min(count, len(parameters))]))
