"""What belongs to a process beside its threads: handle table, VADs, PEB, the name of its image.

Vol and others need one or another of these to read a process; who has no symbols finds the members of _EPROCESS by
them.
"""

from __future__ import annotations

import struct

from apcaudit.synthetic import handletable
from apcaudit.synthetic.machine import Machine
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Process
from apcaudit.synthetic.userspace import spaces, vads

#: STATUS_PENDING (ntstatus.h): the ExitStatus of a process that has not ended.
_PENDING = 0x103
#: Where the first PEB lies behind the base of user images; ours.
_PEBS = 0x1000000
#: MmProtectToValue, by the VADs' five bits: the PAGE_* (winnt.h) of the lowest three, and what the upper two add.
_PAGE_ACCESS, _PAGE_MODIFIERS = (0x01, 0x02, 0x10, 0x20, 0x04, 0x08, 0x40, 0x80), (0, 0x200, 0x100, 0x400)
#: Processes that run no image of a file.
_MINIMAL = frozenset({"Idle", "System", "Registry", "Secure System", "MemCompression"})


def place(machine: Machine, process: Process, body: int, position: int) -> None:
    """Give a process its parts; `position` tells the processes of a machine apart."""
    memory = machine.memory
    handletable.place_empty(machine, body)
    memory.write(body, "_EPROCESS", "ExitStatus", _PENDING, optional=True)
    if process.space is not None:
        spaces.place(machine, process, body)
        _image_name(machine, process, body)
        return
    vads.place(memory, machine.pool, body, [vads.Vad(spaces.SHARED_DATA, PAGE, "READONLY")])
    if process.name in _MINIMAL:
        return
    # All processes without a space of their own share their page tables, so each PEB has an address of its own.
    peb = machine.ranges.user + _PEBS + position * PAGE
    memory.space.map(peb, PAGE)
    memory.write(peb, "_PEB", "ImageBaseAddress", machine.ranges.user, optional=True)
    memory.write(body, "_EPROCESS", "Peb", peb, optional=True)
    _image_name(machine, process, body)


def place_protections(machine: Machine) -> None:
    """Write the table that turns a VAD's protection into PAGE_* constants."""
    if not machine.kernel.has("MmProtectToValue"):
        return
    table = machine.variable("MmProtectToValue", 0x80)
    values = [
        access | (modifier if position else 0)
        for modifier in _PAGE_MODIFIERS
        for position, access in enumerate(_PAGE_ACCESS)
    ]
    machine.memory.space.write(table, struct.pack("<32I", *values))


def _image_name(machine: Machine, process: Process, body: int) -> None:
    """Write the OBJECT_NAME_INFORMATION that a process is audited under: a UNICODE_STRING with its text behind it."""
    memory = machine.memory
    text = f"\\Device\\HarddiskVolume2\\Windows\\System32\\{process.name}".encode("utf-16-le")
    size = memory.size("_UNICODE_STRING")
    name = machine.pool.allocate(size + len(text) + 2, b"SeNm")
    memory.write(name, "_UNICODE_STRING", "Length", len(text))
    memory.write(name, "_UNICODE_STRING", "MaximumLength", len(text) + 2)
    memory.write(name, "_UNICODE_STRING", "Buffer", name + size)
    memory.space.write(name + size, text)
    memory.write(body, "_EPROCESS", "SeAuditProcessCreationInfo.ImageFileName", name, optional=True)
