"""Reserve objects of user APCs (NtAllocateReserveObject), and the handles that processes have to them."""

from __future__ import annotations

from apcaudit.synthetic import handletable
from apcaudit.synthetic.machine import Machine, SceneError
from apcaudit.synthetic.pool import OBJECT_TYPES, ObjectType

#: The type's name (Windows Internals, "Object types"); since 8 a pool tag is the beginning of its type's name.
_NAME = "UserApcReserve"
_INDEX = OBJECT_TYPES[-1][3] + 1


def place(machine: Machine, holders: tuple[str, ...]) -> int:
    """Place a reserve object in use, with a handle in each of the processes; give the address of its KAPC.

    The body is InUse, a number, and behind it at the next pointer the KAPC (nt!PspUserApcReserveKernelRoutine).
    """
    memory, pool = machine.memory, machine.user_pool
    if not memory.has("_OBJECT_HEADER", "TypeIndex"):
        raise SceneError("reserve objects are there since Windows 7")
    pool.types = machine.pool.types | {_NAME: _type(machine)}
    body = pool.place_object(_NAME, memory.pointer_size + memory.size("_KAPC"))
    memory.write_scalar(body, 4, 1)
    for name in holders:
        if name not in machine.processes:
            raise SceneError(f"no process {name} to hold a reserve object")
        handletable.add(machine, machine.processes[name], body - pool.body_offset)
    return body + memory.pointer_size


def _type(machine: Machine) -> ObjectType:
    """Make the object type when the first object needs it, and count its objects."""
    memory, pool = machine.memory, machine.user_pool
    found = pool.types.get(_NAME)
    if found is None:
        pool.types = machine.pool.types
        offset = pool.body_offset
        lead = -(-offset // pool.alignment) * pool.alignment
        address = pool.allocate(lead + memory.size("_OBJECT_TYPE"), b"ObjT") + lead
        found = ObjectType(address, _NAME[:4].encode(), _INDEX)
        pool.write_object_header(address, machine.pool.types["Type"])
        pool.string(address, "_OBJECT_TYPE", "Name", _NAME)
        memory.write(address, "_OBJECT_TYPE", "Index", _INDEX, optional=True)
        table = machine.kernel.address("ObTypeIndexTable")
        memory.write_pointer(table + _INDEX * memory.pointer_size, address)
    count = memory.read(found.address, "_OBJECT_TYPE", "TotalNumberOfObjects")
    memory.write(found.address, "_OBJECT_TYPE", "TotalNumberOfObjects", count + 1)
    return found
