"""A crashed machine of either width, with a kernel of our own: its minidump and its symbol file."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.minidump_builder import DriverEntry, MinidumpScene, UnloadedEntry

GUID = "A9CA0D17A9CA0D17A9CA0D17A9CA0D17"  # invented

# Addresses relative to the kernel's base and offsets of a kernel of our own.
RVAS = {
    "PsLoadedModuleList": 0x7D040,
    "PsActiveProcessHead": 0x84158,
    "PspCidTable": 0x83040,
    "KdDebuggerDataBlock": 0x6EAE0,
    "KiProcessorBlock": 0x8000,
    "MmUnloadedDrivers": 0x84CF0,
    "MmLastUnloadedDriver": 0x84D10,
    "KeNumberProcessors": 0x84D40,
}
PRCB_SIZE, CURRENT_THREAD, PRCB_NUMBER = 0x200, 0x8, 0x24
THREAD_SIZE, APC_PROCESS = 0x100, 0x40
THREAD_HEADS = (0x80, 0x90)  # of empty lists, which point to themselves


class Machine:
    """Addresses of a crashed machine of one width."""

    def __init__(self, is_64bit: bool, pae: bool = True) -> None:
        self.is_64bit = is_64bit
        self.pae = pae
        self.base = 0xFFFFF80312000000 if is_64bit else 0x804D7000
        self.pointer = "<Q" if is_64bit else "<I"
        self.pointer_size = 8 if is_64bit else 4
        high = 0xFFFF808000000000 if is_64bit else 0x8A000000
        self.prcb = high + 0x20180
        self.thread = high + 0x54388
        self.process = high + 0x6BDBB0
        self.stack = high + 0x9E6BE8

    def scene(self) -> MinidumpScene:
        """A minidump of the machine."""
        prcb, thread = bytearray(b"p" * PRCB_SIZE), bytearray(b"t" * THREAD_SIZE)
        struct.pack_into(self.pointer, prcb, CURRENT_THREAD, self.thread)
        prcb[PRCB_NUMBER] = 0
        struct.pack_into(self.pointer, thread, APC_PROCESS, self.process)
        for head in THREAD_HEADS:
            for link in (head, head + self.pointer_size):
                struct.pack_into(self.pointer, thread, link, self.thread + head)
        return MinidumpScene(
            is_64bit=self.is_64bit,
            kern_base=self.base,
            memory={
                self.base + 0x3FFE: b"over a page's end",
                self.base + RVAS["KiProcessorBlock"]: struct.pack(self.pointer, self.prcb),
            },
            drivers=(
                DriverEntry(r"\WINDOWS\system32\ntoskrnl.exe", self.base, 0x214000, 0x217F92, 0x4802516A),
                DriverEntry(r"\SystemRoot\System32\Drivers\Bfilter.sys", self.base + 0x1000000, 0x9000),
            ),
            unloaded=(UnloadedEntry("Cdaudio.SYS", self.base + 0x2000000, self.base + 0x2005000),),
            prcb=bytes(prcb),
            process=b"e" * 0x80,
            thread=bytes(thread),
            stack=(self.stack, b"kernel stack"),
            debugger_data={
                **{
                    name: self.base + RVAS[name]
                    for name in RVAS
                    if name not in ("KeNumberProcessors", "KdDebuggerDataBlock")
                },
                "OffsetPrcbCurrentThread": CURRENT_THREAD,
                "OffsetPrcbNumber": PRCB_NUMBER,
                "OffsetKThreadApcProcess": APC_PROCESS,
                "SizePrcb": PRCB_SIZE,
                "SizeEThread": THREAD_SIZE,
                "SizeEProcess": 0x80,
            },
            header={
                "KdDebuggerDataBlock": self.base + RVAS["KdDebuggerDataBlock"],
                **({} if self.is_64bit else {"PaeEnabled": int(self.pae)}),
            },
        )

    def isf(self) -> dict[str, Any]:
        """A symbol file with just what the layer asks of one."""
        size = self.pointer_size
        members = ("InLoadOrderLinks", "DllBase", "SizeOfImage", "FullDllName", "BaseDllName", "EntryPoint")
        fields = {member: {"offset": 2 * size * number} for number, member in enumerate(members)}
        return {
            "metadata": {"windows": {"pdb": {"GUID": GUID, "age": 1, "database": "ntkrnlmp.pdb"}}},
            "symbols": {name: {"address": address} for name, address in RVAS.items()},
            "user_types": {"_LDR_DATA_TABLE_ENTRY": {"size": 16 * size, "fields": fields}},
        }


MACHINES = [
    pytest.param(Machine(True), id="x64"),
    pytest.param(Machine(False, pae=True), id="x86-pae"),
    pytest.param(Machine(False, pae=False), id="x86"),
]
