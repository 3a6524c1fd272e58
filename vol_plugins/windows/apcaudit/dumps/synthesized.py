"""Synthesizes kernel structures that a minidump lacks from the contents of its headers.

These are the kernel's PDB record, so that its symbols are found; the lists of loaded modules and of processes; the
unloaded drivers; and a few kernel variables. Bytes of the dump are never replaced. Only members whose values are in the
dump's headers or thread are synthesized; the others stay unreadable. Where Volatility requires a text, it says "not in
the dump".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ..formats.files import ReadFile
from ..formats.triage import Minidump
from ..windows import ID_STEP, PAGE_SIZE, SHARED_USER_DATA, SYSTEM_NAME, SYSTEM_PID, version_of_build
from .kernel_match import KernelSymbolFile
from .minidump_memory import DumpedMemory
from .pages import Extent

NOT_IN_THE_DUMP = "(not in the dump)"

# The same for _EPROCESS.ImageFileName: UCHAR[15], before 7 UCHAR[16] (public PDBs).
_NO_PROCESS_NAME = "(not in dump)"
_PROCESS_NAME_SIZE = 15

# Volatility's scan for the PDB record ends 100 pages behind the MZ header (Volatility 3, pdbutil.py).
_MOST_PAGES_TO_RSDS = 100
_RSDS_PAGE_FILLER = b"made up, not in the dump\0"

# Where the search for 32 MB of kernel space begins that neither the dump nor a driver uses.
_SCRATCH_SIZE = 0x2000000
_SCRATCH_START = {8: 0xFFFF800010000000, 4: 0xF0000000}

# Version 5.1, Windows XP, which has no server edition; NtProductWinNt of NT_PRODUCT_TYPE (ntddk.h).
_CLIENT_VERSION = struct.pack("<II", 5, 1)
_CLIENT = 1

# How many bytes Volatility's windows.info reads at NtBuildLab.
_BUILD_LAB_SIZE = 32

# The smallest time that Volatility's unloadedmodules accepts as valid; it prints as 1601-01-01.
_UNKNOWN_UNLOAD_TIME = 1025


@dataclass(frozen=True, slots=True)
class Synthesized:
    """What was synthesized: a sentence on each structure, and their names alone."""

    sentences: tuple[str, ...]
    names: tuple[str, ...]


def add_synthesized_structures(
    dump: Minidump, kernel: KernelSymbolFile, dumped: DumpedMemory, read: ReadFile
) -> Synthesized:
    """Add synthesized structures to the known memory."""
    synthesizer = _Synthesizer(dump, kernel, dumped, read)
    synthesizer.image_headers()
    synthesizer.pdb_record()
    synthesizer.loaded_modules()
    synthesizer.unloaded_drivers()
    synthesizer.processes()
    synthesizer.variables()
    synthesizer.shared_data()
    return Synthesized(tuple(synthesizer.sentences), tuple(synthesizer.names))


class _Synthesizer:
    def __init__(self, dump: Minidump, kernel: KernelSymbolFile, dumped: DumpedMemory, read: ReadFile) -> None:
        self.sentences: list[str] = []
        self.names: list[str] = []
        self._dump = dump
        self._kernel = kernel
        self._dumped = dumped
        self._memory = dumped.memory
        self._read = read
        self._pointer_size = dump.header.pointer_size
        self._pointer = "<Q" if dump.header.is_64bit else "<I"
        self._base = dump.debugger_data.kern_base if dump.debugger_data else dump.drivers[0].base
        self._scratch = self._find_scratch()

    def image_headers(self) -> None:
        """Add the kernel's MZ and PE headers from the driver list, if the dump has no byte of that page."""
        if self._memory.is_unknown(self._base, self._base + PAGE_SIZE):
            self._add(self._base, _image_headers(self._dump, self._base))
            self.names.append("the kernel's image headers")
            self.sentences.append(f"made up: the kernel's image headers at {self._base:#x}, from the driver list")
        elif self._memory.is_unknown(self._base, self._base + 2):
            self._add(self._base, b"MZ")
            self.names.append("the kernel's image headers")
            self.sentences.append(f"made up: the MZ of the kernel's image at {self._base:#x}")

    def pdb_record(self) -> None:
        """Add an RSDS record of the matched PDB, in a page of the kernel's image of which the dump has no byte."""
        guid = bytes.fromhex(self._kernel.guid)
        # GUID in memory: a ULONG and two USHORTs little-endian, then eight bytes.
        stored = guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]
        record = b"RSDS" + stored + struct.pack("<I", self._kernel.age) + self._kernel.pdb_name.encode() + b"\0"
        for page in range(self._base + PAGE_SIZE, self._base + _MOST_PAGES_TO_RSDS * PAGE_SIZE, PAGE_SIZE):
            if self._memory.is_unknown(page, page + PAGE_SIZE):
                filler = _RSDS_PAGE_FILLER * (PAGE_SIZE // len(_RSDS_PAGE_FILLER) + 1)
                self._add(page, (record + filler)[:PAGE_SIZE])
                self.names.append("its PDB record")
                self.sentences.append(
                    f"made up: the page at {page:#x} with a PDB record of {self._kernel.pdb_name} {self._kernel.guid}"
                )
                return

    def loaded_modules(self) -> None:
        """Add an entry for each driver of the dump's list, linked to PsLoadedModuleList."""
        head = self._dump.header.ps_loaded_module_list
        layout = self._kernel.types.get("_KLDR_DATA_TABLE_ENTRY") or self._kernel.types.get("_LDR_DATA_TABLE_ENTRY")
        if not head or layout is None or "InLoadOrderLinks" not in layout.members or not self._dump.drivers:
            return
        links_offset = layout.members["InLoadOrderLinks"]
        entries = [self._allocate(layout.size) for _ in self._dump.drivers]
        ends = self._memory.read(head, 2 * self._pointer_size, self._read)
        if ends is not None:
            # The head is in the dump: the first and the last entry must be where it points.
            first, last = (link - links_offset for (link,) in struct.iter_unpack(self._pointer, ends))
            entries[0], entries[-1] = (first, last) if len(entries) > 1 else (first, first)
            if not all(self._memory.is_unknown(entry, entry + layout.size) for entry in (first, last)):
                self.sentences.append("the module list is in the dump in part, and left as it is")
                return
        links = [head, *(entry + links_offset for entry in entries), head]
        for previous, link, following in zip([links[-2], *links], links, links[1:], strict=False):
            self._add(link, struct.pack(self._pointer, following) + struct.pack(self._pointer, previous))
        for entry, driver in zip(entries, self._dump.drivers, strict=True):
            numbers = (
                ("DllBase", self._pointer, driver.base),
                ("SizeOfImage", "<I", driver.size),
                ("CheckSum", "<I", driver.checksum),
                ("TimeDateStamp", "<I", driver.timestamp),
            )
            for member, form, value in numbers:
                if member in layout.members:
                    self._add(entry + layout.members[member], struct.pack(form, value))
            # Which driver the kernel is does not depend on a name that the file may have lost.
            name = driver.name or ("ntoskrnl.exe" if driver.base == self._base else None)
            if name is not None:
                self._add_name(entry + layout.members["FullDllName"], name)
                self._add_name(entry + layout.members["BaseDllName"], name.rsplit("\\")[-1])
        self.sentences.append(f"made up: {len(entries)} entries of PsLoadedModuleList, from the dump's driver list")
        self.names.append(_entries(len(entries), "PsLoadedModuleList"))

    def unloaded_drivers(self) -> None:
        """Add the array that MmUnloadedDrivers points to, and MmLastUnloadedDriver."""
        pointer, count = self._symbol("MmUnloadedDrivers"), self._symbol("MmLastUnloadedDriver")
        drivers = self._dump.unloaded_drivers
        if pointer is None or count is None or not drivers:
            return
        # Layout: MM's _UNLOADED_DRIVERS, as in Volatility 3, symbols/windows/unloadedmodules-x64.json and -x86.json.
        entry_size = 4 * self._pointer_size + 8
        genuine = self._memory.read(pointer, self._pointer_size, self._read)
        size = entry_size * len(drivers)
        array = self._allocate(size) if genuine is None else int.from_bytes(genuine, "little")
        if not array or not self._memory.is_unknown(array, array + size):
            return
        self._add(pointer, struct.pack(self._pointer, array))
        self._add(count, struct.pack(self._pointer, len(drivers)))
        for index, driver in enumerate(drivers):
            entry = array + index * entry_size
            self._add_name(entry, driver.name)
            rest = struct.pack(self._pointer, driver.start) + struct.pack(self._pointer, driver.end)
            self._add(entry + 2 * self._pointer_size, rest + struct.pack("<Q", _UNKNOWN_UNLOAD_TIME))
        self.sentences.append(f"made up: {len(drivers)} entries of MmUnloadedDrivers; the time 1601-01-01 is no time")
        self.names.append(_entries(len(drivers), "MmUnloadedDrivers"))

    def processes(self) -> None:
        """Add PsActiveProcessHead, and those processes that lead from it to the crashing one.

        The crashing thread's own process, where the dump lacks it, is known by its address and ID. The first process of
        the list is System (Windows Internals, "System process").
        """
        head, offset = self._dump.header.ps_active_process_head, self._member("_EPROCESS", "ActiveProcessLinks")
        if not head or offset is None:
            return
        ids = self._owner()
        chain = [*ids, *([self._dumped.process] if self._dumped.process not in (None, *ids) else [])]
        ends = self._memory.read(head, 2 * self._pointer_size, self._read)
        flink = None if ends is None else int(struct.unpack_from(self._pointer, ends)[0])
        if flink is not None and flink - offset not in chain:
            known = not self._memory.is_unknown(flink, flink + 2 * self._pointer_size)
            if known or SYSTEM_PID in ids.values() or not self._is_kernel_object(flink - offset):
                return
            chain.insert(0, flink - offset)
            ids[flink - offset] = SYSTEM_PID
        links = [head, *(process + offset for process in chain if process is not None), head]
        added = [
            self._add_whole(link, struct.pack(self._pointer, following) + struct.pack(self._pointer, previous))
            for previous, link, following in zip([links[-2], *links], links[:-1], links[1:], strict=False)
        ]
        if added[0]:
            self.names.append("PsActiveProcessHead")
        made = {process: pid for process, pid in ids.items() if self._add_process(process, pid)}
        self.names += [f"_EPROCESS {process:#x} of PID {pid}" for process, pid in made.items()]
        if any(added) or made:
            self.sentences.append(f"made up: the list of processes at {head:#x}, as far as to the crashing one")

    def _owner(self) -> dict[int, int]:
        # The crashing thread's process, which is not the one that it is attached to, and its ID; empty where unknown.
        thread, states = self._dumped.thread, ("ApcState", "SavedApcState")
        index = self._of_thread(thread, self._member("_KTHREAD", "ApcStateIndex"), 1)
        if index is None or index >= len(states):
            return {}
        state, process = self._member("_KTHREAD", states[index]), self._member("_KAPC_STATE", "Process")
        cid, unique = self._member("_ETHREAD", "Cid"), self._member("_CLIENT_ID", "UniqueProcess")
        if state is None or process is None or cid is None or unique is None:
            return {}
        owner = self._of_thread(thread, state + process, self._pointer_size)
        pid = self._of_thread(thread, cid + unique, self._pointer_size)
        if not owner or not pid or not self._is_kernel_object(owner) or pid % ID_STEP or pid >> 32:
            return {}
        return {owner: pid}

    def _is_kernel_object(self, address: int) -> bool:
        # Objects begin at multiples of 8, in the upper half of the address space.
        bits = self._pointer_size * 8
        return 1 << (bits - 1) <= address < (1 << bits) - PAGE_SIZE and address % 8 == 0

    def _of_thread(self, thread: int | None, offset: int | None, size: int) -> int | None:
        data = None if thread is None or offset is None else self._memory.read(thread + offset, size, self._read)
        return None if data is None else int.from_bytes(data, "little")

    def _add_process(self, process: int, pid: int) -> bool:
        # Volatility opens the address space of each process, so each gets the page map that is made up for the dump.
        name = SYSTEM_NAME if pid == SYSTEM_PID else _NO_PROCESS_NAME
        members = {
            "UniqueProcessId": struct.pack(self._pointer, pid),
            "ImageFileName": name.encode("ascii").ljust(_PROCESS_NAME_SIZE, b"\0"),
        }
        if not self._add_members("_EPROCESS", process, members):
            return False
        base, pcb = self._member("_KPROCESS", "DirectoryTableBase"), self._member("_EPROCESS", "Pcb")
        if base is not None and pcb is not None:
            page_map = struct.pack(self._pointer, self._dump.header.directory_table_base)
            self._add_whole(process + pcb + base, page_map)
        return True

    def variables(self) -> None:
        """Add kernel variables whose values are in the dump's headers."""
        header = self._dump.header
        # DUMP_HEADER and the version block have the same MajorVersion (free or checked build) and MinorVersion (build).
        version_block = {
            "MajorVersion": struct.pack("<H", header.major_version & 0xFFFF),
            "MinorVersion": struct.pack("<H", header.minor_version & 0xFFFF),
            "MachineType": struct.pack("<H", header.machine_image_type & 0xFFFF),
            "KernBase": self._sign_extended(self._base),
            "PsLoadedModuleList": self._sign_extended(header.ps_loaded_module_list),
        }
        added = self._add_members("_DBGKD_GET_VERSION64", self._symbol("KdVersionBlock"), version_block)
        numbers = (
            ("KeNumberProcessors", header.number_processors),
            ("CmNtCSDVersion", self._dump.triage.service_pack_build),
        )
        for name, number in numbers:
            address = self._symbol(name)
            if address is not None and self._add(address, struct.pack("<I", number)):
                added.append(name)
        data = self._dump.debugger_data
        text = f"{header.minor_version} {NOT_IN_THE_DUMP}".encode("ascii").ljust(_BUILD_LAB_SIZE, b"\0")
        if data is not None and data.nt_build_lab is not None and self._add_whole(data.nt_build_lab, text):
            added.append("NtBuildLab")
        if added:
            self.sentences.append(f"made up: {', '.join(added)}, from the headers")
            self.names += [name for name in added if "." not in name]
            self.names += ["_DBGKD_GET_VERSION64"] if any("." in name for name in added) else []

    def shared_data(self) -> None:
        """Add members of _KUSER_SHARED_DATA: the crash header's times and product type, the kernel's version."""
        header = self._dump.header
        # WCHAR NtSystemRoot[260]
        members = {"NtSystemRoot": NOT_IN_THE_DUMP.encode("utf-16-le").ljust(520, b"\0")}
        if header.system_time is not None:
            # KSYSTEM_TIME: LowPart, High1Time, High2Time; the last two are equal.
            members["SystemTime"] = struct.pack("<QI", header.system_time, header.system_time >> 32)
        version = self._image_version()
        product = header.product_type
        if product is None and version == _CLIENT_VERSION:
            product = _CLIENT
        if product is not None:
            members["NtProductType"] = struct.pack("<I", product)
        if header.system_up_time is not None:
            members["InterruptTime"] = struct.pack("<QI", header.system_up_time, header.system_up_time >> 32)
        if version is not None:
            members["NtMajorVersion"], members["NtMinorVersion"] = version[:4], version[4:]
        added = self._add_members("_KUSER_SHARED_DATA", SHARED_USER_DATA[self._pointer_size], members)
        if added:
            self.sentences.append(f"made up: {', '.join(added)}, from the crash header and the kernel's image")
            self.names += [name.rpartition(".")[2] for name in added]

    def _image_version(self) -> bytes | None:
        # By IMAGE_DOS_HEADER.e_lfanew MajorOperatingSystemVersion and Minor... of the optional header, as ULONGs; else
        # those of the build.
        e_lfanew = self._memory.read(self._base + 0x3C, 4, self._read)
        place = None if e_lfanew is None else self._base + int.from_bytes(e_lfanew, "little") + 24 + 40
        version = None if place is None else self._memory.read(place, 4, self._read)
        if version is not None and any(version):
            return struct.pack("<II", *struct.unpack("<HH", version))
        known = version_of_build(self._dump.header.minor_version)
        return None if known is None else struct.pack("<II", *known[:2])

    def _find_scratch(self) -> int:
        start = _SCRATCH_START[self._pointer_size]
        end = start + _SCRATCH_SIZE
        while not self._memory.is_unknown(start, end) or any(
            driver.base < end and start < driver.base + driver.size for driver in self._dump.drivers
        ):
            start, end = end, end + _SCRATCH_SIZE
        return start

    def _allocate(self, size: int) -> int:
        address = self._scratch
        self._scratch += (size + 15) & ~15
        return address

    def _member(self, type_name: str, member: str) -> int | None:
        layout = self._kernel.types.get(type_name)
        return None if layout is None else layout.members.get(member)

    def _symbol(self, name: str) -> int | None:
        address = self._kernel.symbols.get(name)
        return None if address is None else self._base + address

    def _sign_extended(self, address: int) -> bytes:
        high = 0xFFFFFFFF if self._pointer_size == 4 and address >> 31 else address >> 32
        return struct.pack("<II", address & 0xFFFFFFFF, high)

    def _add(self, address: int, data: bytes) -> int:
        return self._memory.add(Extent(address, len(data), None, data))

    def _add_whole(self, address: int, data: bytes) -> int:
        # Never mix genuine and synthesized bytes in one value.
        return self._add(address, data) if self._memory.is_unknown(address, address + len(data)) else 0

    def _add_members(self, type_name: str, address: int | None, members: Mapping[str, bytes]) -> list[str]:
        # Returns the names of the members that were added.
        layout = self._kernel.types.get(type_name)
        if layout is None or address is None:
            return []
        return [
            f"{type_name}.{member}"
            for member, data in members.items()
            if member in layout.members and self._add_whole(address + layout.members[member], data)
        ]

    def _add_name(self, address: int, name: str) -> None:
        # UNICODE_STRING: Length and MaximumLength in bytes, then, aligned, the pointer.
        text = name.encode("utf-16-le")[:0xFFFE]
        buffer = self._allocate(len(text) + 2)
        self._add(buffer, text + b"\0\0")
        lengths = struct.pack("<HH", len(text), len(text) + 2).ljust(self._pointer_size, b"\0")
        self._add(address, lengths + struct.pack(self._pointer, buffer))


def _entries(count: int, what: str) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'} of {what}"


def _image_headers(dump: Minidump, base: int) -> bytes:
    """Build minimal PE headers of the kernel from the driver list, without sections (winnt.h)."""
    kernel = dump.kernel
    size, checksum, timestamp = (kernel.size, kernel.checksum, kernel.timestamp) if kernel else (PAGE_SIZE, 0, 0)
    is_64bit = dump.header.is_64bit
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    optional_size = 240 if is_64bit else 224
    file_header = struct.pack("<HHIIIHH", dump.header.machine_image_type & 0xFFFF, 0, timestamp, 0, 0, optional_size, 2)
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, 0x20B if is_64bit else 0x10B)
    struct.pack_into("<Q" if is_64bit else "<I", optional, 24 if is_64bit else 28, base)
    struct.pack_into("<II", optional, 32, PAGE_SIZE, 0x200)
    version = version_of_build(dump.header.minor_version)
    if version is not None:
        struct.pack_into("<HH", optional, 40, *version[:2])
    struct.pack_into("<III", optional, 56, size, 0x400, checksum)
    struct.pack_into("<I", optional, 108 if is_64bit else 92, 16)
    return dos + b"PE\0\0" + file_header + bytes(optional)
