"""Handle tables: PspCidTable, of process and thread IDs, with one, two or three levels; and processes' own, empty."""

from __future__ import annotations

import struct

from apcaudit.synthetic.machine import Machine, SceneError
from apcaudit.synthetic.pages import PAGE

#: Handle values count in steps of four (Windows Internals, "Object handles").
_STEP = 4


def place(machine: Machine) -> None:
    """Build PspCidTable from `machine.cid_entries`.

    TableCode's low two bits are the number of levels above the leaves. Before Windows 8 an entry is the object's
    address with bit 0 set while unlocked; since then the address is packed into ObjectPointerBits beside a reference
    count.
    """
    memory, pool = machine.memory, machine.pool
    entry_size = memory.size("_HANDLE_TABLE_ENTRY")
    a_leaf, a_table = PAGE // entry_size, PAGE // memory.pointer_size
    entries = machine.cid_entries
    last = max(entries, default=0) // _STEP
    leaves = {index // a_leaf for index in (identifier // _STEP for identifier in entries)} | {0}
    address_of_leaf = {leaf: pool.take_pages(PAGE) for leaf in sorted(leaves)}
    encode = _Encoder(machine)
    for identifier, body in sorted(entries.items()):
        index = identifier // _STEP
        at = address_of_leaf[index // a_leaf] + index % a_leaf * entry_size
        memory.space.write(at, encode(body))
    level, code = 0, address_of_leaf[0]
    count = last // a_leaf + 1
    if count > 1:
        level, tables = 1, _upper(machine, address_of_leaf, a_table)
        code = tables[0]
        if count > a_table:
            level, code = 2, _upper(machine, tables, a_table)[0]
    table = pool.allocate(memory.size("_HANDLE_TABLE"), b"Obtb")
    memory.write(table, "_HANDLE_TABLE", "TableCode", code | level)
    memory.write(table, "_HANDLE_TABLE", "NextHandleNeedingPool", count * a_leaf * _STEP)
    memory.write(table, "_HANDLE_TABLE", "HandleCount", len(entries), optional=True)
    machine.set_pointer("PspCidTable", table)


def place_empty(machine: Machine, process: int) -> None:
    """Give a process (the address of its _EPROCESS) a handle table with no handles."""
    memory, pool = machine.memory, machine.pool
    table = pool.allocate(memory.size("_HANDLE_TABLE"), b"Obtb")
    leaf = pool.take_pages(PAGE)
    memory.write(table, "_HANDLE_TABLE", "TableCode", leaf)
    memory.write(table, "_HANDLE_TABLE", "QuotaProcess", process)
    memory.write(table, "_HANDLE_TABLE", "NextHandleNeedingPool", PAGE // memory.size("_HANDLE_TABLE_ENTRY") * _STEP)
    memory.write(process, "_EPROCESS", "ObjectTable", table)


def add(machine: Machine, process: int, header: int) -> int:
    """Add a handle to a process's table (of one level) for an object, given by its header; give the handle."""
    memory = machine.memory
    table = memory.read(process, "_EPROCESS", "ObjectTable")
    leaf = memory.read(table, "_HANDLE_TABLE", "TableCode")
    encode = _Encoder(machine)
    # Entry 0 is never a handle.
    for index in range(1, PAGE // encode.size):
        at = leaf + index * encode.size
        if not any(memory.space.read(at, encode.size)):
            memory.space.write(at, encode(header))
            if memory.has("_HANDLE_TABLE", "HandleCount"):
                count = memory.read(table, "_HANDLE_TABLE", "HandleCount")
                memory.write(table, "_HANDLE_TABLE", "HandleCount", count + 1)
            return index * _STEP
    raise SceneError("too many handles for a table of one level")


def _upper(machine: Machine, lower: dict[int, int], a_table: int) -> dict[int, int]:
    """Make the tables of one level above: table number to address."""
    made: dict[int, int] = {0: machine.pool.take_pages(PAGE)}
    for number, address in sorted(lower.items()):
        if number // a_table not in made:
            made[number // a_table] = machine.pool.take_pages(PAGE)
        machine.memory.write_pointer(made[number // a_table] + number % a_table * machine.memory.pointer_size, address)
    return made


class _Encoder:
    """Makes a handle table entry's bytes for an object."""

    def __init__(self, machine: Machine) -> None:
        memory = machine.memory
        self.size = memory.size("_HANDLE_TABLE_ENTRY")
        self.mask = memory.layout.pointer_mask
        self.packed = memory.has("_HANDLE_TABLE_ENTRY", "ObjectPointerBits")
        name = "ObjectPointerBits" if self.packed else "Object"
        self.field = memory.layout.field("_HANDLE_TABLE_ENTRY", name)

    def __call__(self, body: int) -> bytes:
        if not self.packed:
            value = (body & self.mask) | 1
        else:
            # The bits left out of ObjectPointerBits are the alignment's zeroes below and the sign above: 44 bits of a
            # 48-bit address on x64, 29 of 32 on x86. Bit 0 of the entry is the lock, set while free.
            low = 3 if self.mask >> 32 == 0 else 4
            value = ((body >> low) & ((1 << self.field.bits) - 1)) << self.field.bit | 1
        return bytes(self.field.offset) + struct.pack("<Q", value)[: self.field.size].ljust(
            self.size - self.field.offset, b"\0"
        )
