"""Kernel minidumps for tests, written from a declaration.

The offsets are those of Dump.h (Microsoft Research, Singularity), spelled out a second time here so that a test does
not check the parser against itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

FILETIME_2021 = 132583882200000000  # 2021-02-21 in 100 ns ticks since 1601

_HEADER = {
    # name: (offset and format in DUMP_HEADER32, offset and format in DUMP_HEADER64)
    "MajorVersion": ((0x08, "I"), (0x08, "I")),
    "MinorVersion": ((0x0C, "I"), (0x0C, "I")),
    "DirectoryTableBase": ((0x10, "I"), (0x10, "Q")),
    "PfnDataBase": ((0x14, "I"), (0x18, "Q")),
    "PsLoadedModuleList": ((0x18, "I"), (0x20, "Q")),
    "PsActiveProcessHead": ((0x1C, "I"), (0x28, "Q")),
    "MachineImageType": ((0x20, "I"), (0x30, "I")),
    "NumberProcessors": ((0x24, "I"), (0x34, "I")),
    "BugCheckCode": ((0x28, "I"), (0x38, "I")),
    "BugCheckParameter1": ((0x2C, "I"), (0x40, "Q")),
    "BugCheckParameter2": ((0x30, "I"), (0x48, "Q")),
    "BugCheckParameter3": ((0x34, "I"), (0x50, "Q")),
    "BugCheckParameter4": ((0x38, "I"), (0x58, "Q")),
    "PaeEnabled": ((0x5C, "B"), None),
    "KdDebuggerDataBlock": ((0x60, "I"), (0x80, "Q")),
    "SystemUpTime": ((0xFB8, "Q"), (0x1030, "Q")),
    "DumpType": ((0xF88, "I"), (0xF98, "I")),
    "MiniDumpFields": ((0xF8C, "I"), (0x1038, "I")),
    "ProductType": ((0xF94, "I"), (0x1040, "I")),
    "SystemTime": ((0xFC0, "Q"), (0xFA8, "Q")),
    "Attributes": ((0x8A0, "I"), (0x1050, "I")),
    "ExceptionCode": ((0x7D0, "I"), (0xF00, "I")),
    "ExceptionAddress": ((0x7DC, "I"), (0xF10, "Q")),
    "ExceptionParameterCount": ((0x7E0, "I"), (0xF18, "I")),
}

_TRIAGE = {
    "ServicePackBuild": (0x00, 0x00),
    "SizeOfDump": (0x04, 0x04),
    "ValidOffset": (0x08, 0x08),
    "ContextOffset": (0x0C, 0x0C),
    "ExceptionOffset": (0x10, 0x10),
    "MmOffset": (0x14, 0x14),
    "UnloadedDriversOffset": (0x18, 0x18),
    "PrcbOffset": (0x1C, 0x1C),
    "ProcessOffset": (0x20, 0x20),
    "ThreadOffset": (0x24, 0x24),
    "CallStackOffset": (0x28, 0x28),
    "SizeOfCallStack": (0x2C, 0x2C),
    "DriverListOffset": (0x30, 0x30),
    "DriverCount": (0x34, 0x34),
    "StringPoolOffset": (0x38, 0x38),
    "StringPoolSize": (0x3C, 0x3C),
    "BrokenDriverOffset": (0x40, 0x40),
    "TriageOptions": (0x44, 0x44),
    "TopOfStack": (0x48, 0x48),
    "DataPageAddress": (0x4C, 0x60),
    "DataPageOffset": (0x50, 0x68),
    "DataPageSize": (0x54, 0x6C),
    "DebuggerDataOffset": (0x58, 0x70),
    "DebuggerDataSize": (0x5C, 0x74),
    "DataBlocksOffset": (0x60, 0x78),
    "DataBlocksCount": (0x64, 0x7C),
}
#: Every field of TRIAGE_DUMP32 and TRIAGE_DUMP64: (name, offset, size).
FIELDS = {
    wide: [
        (name, places[wide], 8 if wide and name in ("TopOfStack", "DataPageAddress") else 4)
        for name, places in _TRIAGE.items()
    ]
    + ([("ArchitectureSpecific", 0x50, 16)] if wide else [])
    for wide in (False, True)
}

_TRIAGE_POINTERS = ("TopOfStack", "DataPageAddress")

_DEBUGGER_DATA = {
    "PsLoadedModuleList": 0x48,
    "PsActiveProcessHead": 0x50,
    "PspCidTable": 0x58,
    "KiProcessorBlock": 0x218,
    "MmUnloadedDrivers": 0x220,
    "MmLastUnloadedDriver": 0x228,
    "OffsetKThreadApcProcess": 0x2A0,
    "SizeEProcess": 0x2A8,
    "SizePrcb": 0x2B0,
    "OffsetPrcbCurrentThread": 0x2B4,
    "OffsetPrcbNumber": 0x2BE,
    "SizeEThread": 0x2C0,
}


@dataclass(frozen=True)
class DriverEntry:
    """A driver of the dump's list."""

    name: str
    base: int
    size: int
    checksum: int = 0
    timestamp: int = 0


@dataclass(frozen=True)
class UnloadedEntry:
    """An unloaded driver of the dump."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class MinidumpScene:
    """What a minidump is to hold; `triage` and `header` overrule what the writer works out, so that they can lie.

    `debugger_bytes` is a KDDEBUGGER_DATA64 in the place of one made from `debugger_data`, `header_bytes` a crash header
    whose other fields stay as they are.
    """

    is_64bit: bool
    kern_base: int
    memory: Mapping[int, bytes] = field(default_factory=dict)
    drivers: tuple[DriverEntry, ...] = ()
    unloaded: tuple[UnloadedEntry, ...] = ()
    prcb: bytes = b""
    process: bytes = b""
    thread: bytes = b""
    stack: tuple[int, bytes] = (0, b"")
    debugger_data: Mapping[str, int] = field(default_factory=dict)
    debugger_bytes: bytes = b""
    header_bytes: bytes = b""
    header: Mapping[str, int] = field(default_factory=dict)
    triage: Mapping[str, int] = field(default_factory=dict)


def write_minidump(scene: MinidumpScene) -> bytes:
    """Write the file."""
    return _Writer(scene).file()


class _Writer:
    def __init__(self, scene: MinidumpScene) -> None:
        self._scene = scene
        self._wide = scene.is_64bit
        self._pointer = "<Q" if self._wide else "<I"
        header_size = 0x2000 if self._wide else 0x1000
        # Windows fills the header with its signature first.
        header = scene.header_bytes or b"PAGE" * (header_size // 4)
        self._file = bytearray(header + bytes(0x80 if self._wide else 0x68))
        self._triage: dict[str, int] = {}

    def file(self) -> bytes:
        scene = self._scene
        # DUMP_MM_STORAGE (Dump.h): Version, Size, and figures that nobody here reads.
        size = 0x50 if self._wide else 0x30
        self._triage["MmOffset"] = self._append(struct.pack("<2I", 1, size).ljust(size, b"m"))
        self._unloaded_drivers()
        for name, data in (("Prcb", scene.prcb), ("Process", scene.process), ("Thread", scene.thread)):
            if data:
                self._triage[f"{name}Offset"] = self._append(data)
        top, stack = scene.stack
        if stack:
            self._triage |= {"TopOfStack": top, "SizeOfCallStack": len(stack), "CallStackOffset": self._append(stack)}
        debugger_data = self._debugger_data()
        self._triage |= {"DebuggerDataSize": len(debugger_data), "DebuggerDataOffset": self._append(debugger_data)}
        self._drivers()
        self._data_blocks()
        self._triage |= {
            "ContextOffset": 0x348 if self._wide else 0x320,
            "ExceptionOffset": 0xF00 if self._wide else 0x7D0,
            "TriageOptions": 0xFFFFFFFF,
            "ValidOffset": self._append(b"TRGD"),
        }
        self._triage["SizeOfDump"] = len(self._file)
        self._headers()
        return bytes(self._file)

    def _append(self, data: bytes) -> int:
        self._file += bytes(-len(self._file) % 8)
        self._file += data
        return len(self._file) - len(data)

    def _debugger_data(self) -> bytes:
        if self._scene.debugger_bytes:
            return self._scene.debugger_bytes
        data = bytearray(0x340)
        struct.pack_into("<4sIQ", data, 0x10, b"KDBG", len(data), self._extended(self._scene.kern_base))
        for name, value in self._scene.debugger_data.items():
            short = name.startswith(("Offset", "Size"))
            struct.pack_into(
                "<H" if short else "<Q", data, _DEBUGGER_DATA[name], value if short else self._extended(value)
            )
        return bytes(data)

    def _extended(self, address: int) -> int:
        # Pointers of x86 stand sign-extended in KDDEBUGGER_DATA64.
        return address | 0xFFFFFFFF00000000 if not self._wide and address >> 31 else address

    def _unloaded_drivers(self) -> None:
        entries = bytearray(struct.pack("<Q" if self._wide else "<I", len(self._scene.unloaded)))
        for driver in self._scene.unloaded:
            text = driver.name.encode("utf-16-le")[:24]
            entries += struct.pack("<HH", len(text), len(text)).ljust(16 if self._wide else 8, b"\0")
            entries += text.ljust(24, b"\0")
            entries += struct.pack(self._pointer, driver.start) + struct.pack(self._pointer, driver.end)
        self._triage["UnloadedDriversOffset"] = self._append(bytes(entries))

    def _drivers(self) -> None:
        pool = b""
        starts = []
        for driver in self._scene.drivers:
            starts.append(len(pool))
            text = struct.pack("<I", len(driver.name)) + driver.name.encode("utf-16-le") + b"\0\0"
            pool += text + bytes(-len(text) % 4)
        pool_offset = self._append(pool)
        entries = bytearray()
        size, base, image_size, checksum, timestamp = (
            (0x90, 0x38, 0x48, 0x80, 0x88) if self._wide else (0x4C, 0x1C, 0x24, 0x44, 0x48)
        )
        for start, driver in zip(starts, self._scene.drivers, strict=True):
            entry = bytearray(size)
            struct.pack_into("<I", entry, 0, pool_offset + start)
            struct.pack_into(self._pointer, entry, base, driver.base)
            struct.pack_into("<I", entry, image_size, driver.size)
            struct.pack_into("<I", entry, checksum, driver.checksum)
            struct.pack_into("<I", entry, timestamp, driver.timestamp)
            entries += entry
        self._triage |= {
            "StringPoolOffset": pool_offset,
            "StringPoolSize": len(pool),
            "DriverCount": len(self._scene.drivers),
            "DriverListOffset": self._append(bytes(entries)),
        }

    def _data_blocks(self) -> None:
        # As Windows does it: the table, then the memory of its blocks.
        table = self._append(bytes(16 * len(self._scene.memory)))
        for number, (address, data) in enumerate(self._scene.memory.items()):
            struct.pack_into("<QII", self._file, table + 16 * number, address, self._append(data), len(data))
        self._triage |= {"DataBlocksCount": len(self._scene.memory), "DataBlocksOffset": table}

    def _fields(self) -> int:
        """Return the bits of what the file has; of a broken driver Windows sets the bit without having one."""
        scene = self._scene
        parts = ((0x4, scene.prcb), (0x8, scene.process), (0x10, scene.thread), (0x20, scene.stack[1]))
        return 0xCC3 | sum(bit for bit, data in parts if data)

    def _headers(self) -> None:
        variables = self._scene.debugger_data
        header = {
            "MajorVersion": 15,
            "MinorVersion": 19041 if self._wide else 2600,
            "DirectoryTableBase": 0x1AD000 if self._wide else 0xB1C0020,
            "PsLoadedModuleList": variables.get("PsLoadedModuleList", 0),
            "PsActiveProcessHead": variables.get("PsActiveProcessHead", 0),
            "MachineImageType": 0x8664 if self._wide else 0x14C,
            "NumberProcessors": 1,
            "BugCheckCode": 6,
            **{f"BugCheckParameter{number}": 0 for number in (1, 2, 3, 4)},
            "KdDebuggerDataBlock": 0,
            "DumpType": 4,
            "MiniDumpFields": self._fields(),
            "ProductType": 1,
            "SystemTime": FILETIME_2021,
            **({} if self._wide else {"PaeEnabled": 1}),
            **self._scene.header,
        }
        self._file[4:8] = b"DU64" if self._wide else b"DUMP"
        for name, value in header.items():
            place = _HEADER[name][1 if self._wide else 0]
            assert place is not None, name
            struct.pack_into("<" + place[1], self._file, place[0], value)
        start = 0x2000 if self._wide else 0x1000
        for name, value in (self._triage | dict(self._scene.triage)).items():
            form = self._pointer if name in _TRIAGE_POINTERS else "<I"
            struct.pack_into(form, self._file, start + _TRIAGE[name][1 if self._wide else 0], value)
