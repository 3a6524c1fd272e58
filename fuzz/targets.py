"""What of an image is damaged: every structure that an audit reads, whose it is, and where its members lie."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.pages import PAGE, NotMappedError

EVERYBODY = 0
"""The owner of what more than one thread depends on; other owners are addresses of threads."""

_APC_HEADS = tuple(f"Tcb.{state}.ApcListHead[{mode}]" for state in ("ApcState", "SavedApcState") for mode in range(2))
_MEMBERS: dict[str, tuple[str, ...]] = {
    "_ETHREAD": (
        "Cid.UniqueProcess", "Cid.UniqueThread", "Tcb.Header.Type", "Tcb.Process", "ThreadsProcess", "Tcb.State",
        "Tcb.WaitReason", "Tcb.WaitIrql", "Tcb.ApcQueueable", "Tcb.ApcStateIndex", "Tcb.KernelApcDisable",
        "Tcb.SpecialApcDisable", "Terminated", "Tcb.SystemThread", "SystemThread", "StartAddress", "Tcb.KernelStack",
        "Tcb.StackBase", "Tcb.StackLimit", "ThreadListEntry.Flink", "ThreadListEntry.Blink", "IrpList.Flink",
        "IrpList.Blink", "CreateTime", "ExitTime", "Tcb.ApcState.Process", "Tcb.SavedApcState.Process",
        "Tcb.ApcState.KernelApcPending", "Tcb.ApcState.UserApcPending",
        *(f"{head}.{link}" for head in _APC_HEADS for link in ("Flink", "Blink")),
    ),
    "_KAPC": (
        "Type", "Size", "Thread", "ApcListEntry.Flink", "ApcListEntry.Blink", "KernelRoutine", "RundownRoutine",
        "NormalRoutine", "NormalContext", "SystemArgument1", "SystemArgument2", "ApcStateIndex", "ApcMode", "Inserted",
    ),
    "_EPROCESS": (
        "UniqueProcessId", "ActiveProcessLinks.Flink", "ActiveProcessLinks.Blink", "ThreadListHead.Flink",
        "ThreadListHead.Blink", "ImageFileName",
    ),
    "_LDR_DATA_TABLE_ENTRY": (
        "InLoadOrderLinks.Flink", "InLoadOrderLinks.Blink", "DllBase", "SizeOfImage", "BaseDllName.Length",
        "BaseDllName.Buffer", "FullDllName.Length", "FullDllName.Buffer",
    ),
    "_IRP": (
        "Type", "Size", "StackCount", "CurrentLocation", "Flags", "UserIosb", "UserEvent", "ThreadListEntry.Flink",
        "ThreadListEntry.Blink", "ApcEnvironment",
    ),
    "_DEVICE_OBJECT": ("Type", "DriverObject"),
    "_DRIVER_OBJECT": ("Type", "DriverStart", "DriverName.Length", "DriverName.Buffer"),
    "_FILE_OBJECT": ("Type", "DeviceObject", "FileName.Length", "FileName.Buffer"),
    "_KPRCB": ("Number", "CurrentThread", "NextThread", "IdleThread"),
}  # fmt: skip
_MEMBERS["_KLDR_DATA_TABLE_ENTRY"] = _MEMBERS["_LDR_DATA_TABLE_ENTRY"]

_KINDS = {
    "process": "_EPROCESS",
    "irp": "_IRP",
    "file": "_FILE_OBJECT",
    "device": "_DEVICE_OBJECT",
    "driver-object": "_DRIVER_OBJECT",
    "kprcb": "_KPRCB",
}

_VARIABLES = (
    "PsActiveProcessHead", "PsLoadedModuleList", "PspCidTable", "KiProcessorBlock", "MmUnloadedDrivers",
    "MmSystemRangeStart", "KiBugCheckData", "PsInitialSystemProcess", "PsIdleProcess",
)  # fmt: skip

_BEFORE = 0x200
"""How far before a KAPC the structure begins, at most, that it may be a member of."""

_HEADERS = 0x400  # of a driver's image: DOS, NT and section headers


@dataclass(frozen=True, slots=True)
class Target:
    """A structure: owner, name, virtual address, size in bytes, and (offset, size) of the members that are read.

    `pieces` says where it lies: (offset in it, physical address, length). `links` are the offsets of LIST_ENTRYs.
    `owners` are all whose rows may tell of it. `fields` are the members again, by their paths.
    """

    owners: frozenset[int]
    name: str
    address: int
    size: int
    members: tuple[tuple[int, int], ...]
    links: tuple[int, ...]
    pieces: tuple[tuple[int, int, int], ...]
    fields: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def physical(self, offset: int) -> int | None:
        """Translate an offset, None where nothing is mapped."""
        for start, physical, length in self.pieces:
            if start <= offset < start + length:
                return physical + offset - start
        return None


def targets(image: Image) -> list[Target]:
    """List the structures of an image, in an order that never depends on chance."""
    holders = _holders(image)
    found = [_with_holders(each, holders) for each in _all(image) if each.pieces]
    everybody = frozenset({EVERYBODY, *(owner for each in found for owner in each.owners)})
    return [_with_neighbours(each, found, everybody) for each in found]


def spare(image: Image, address: int, size: int) -> Target:
    """Make a target of memory that nothing uses and nobody owns."""
    return replace(_range(image, EVERYBODY, "spare memory", address, size), owners=frozenset())


def _with_holders(target: Target, holders: Mapping[int, set[int]]) -> Target:
    """Add all threads on whose lists a KAPC hangs: with it goes what the row of each tells of it."""
    if "apc:" not in target.name:
        return target
    apc = target.address + (target.size if target.name.startswith("header of ") else 0)
    return replace(target, owners=target.owners | holders.get(apc, set()))


def _holders(image: Image) -> dict[int, set[int]]:
    """Walk the APC lists of every thread, and give by KAPC the threads whose lists come by it."""
    memory, holders = image.memory, dict[int, set[int]]()
    links = memory.offset("_KAPC", "ApcListEntry")
    for body in {address for name, address in image.address_of.items() if isinstance(name, int)}:
        for head in _APC_HEADS:
            if not memory.has("_ETHREAD", head):
                continue
            at = memory.read_pointer(body + memory.offset("_ETHREAD", head))
            met: set[int] = set()
            while at not in met and memory.space.is_mapped(at):
                met.add(at)
                holders.setdefault(at - links, set()).add(body)
                with contextlib.suppress(NotMappedError):
                    at = memory.read_pointer(at)
    return holders


def _with_neighbours(target: Target, found: list[Target], everybody: frozenset[int]) -> Target:
    """Add those who look at a structure that is not theirs: what lies before a KAPC is asked whether it is an IRP.

    What would be the pool header of a KAPC that is in no pool may be the end of the KAPC before.
    """
    if target.name.startswith("page table"):
        return replace(target, owners=everybody)
    if "apc:" not in target.name:
        return target
    near = [
        each.owners
        for each in found
        if -each.size < each.address - target.address < _BEFORE and each.name.startswith("apc:")
    ]
    return replace(target, owners=target.owners.union(*near))


def _all(image: Image) -> Iterator[Target]:
    memory, named = image.memory, image.address_of
    module_type = "_KLDR_DATA_TABLE_ENTRY" if memory.layout.has_type("_KLDR_DATA_TABLE_ENTRY") else ""
    module_type = module_type or "_LDR_DATA_TABLE_ENTRY"
    threads = {body: name for name, body in named.items() if isinstance(name, int)}
    for body, tid in sorted(threads.items()):
        yield _structure(image, body, f"thread {tid}", "_ETHREAD", body)
        base = memory.read(body, "_ETHREAD", "Tcb.StackBase")
        yield _range(image, body, f"stack of {tid}", base - PAGE, PAGE)
        if memory.space.is_mapped(base - PAGE):
            yield _range(image, body, f"top of stack of {tid}", base - 0x400, 0x400)
    for name, address in sorted((each for each in named.items() if isinstance(each[0], str)), key=str):
        kind = str(name).partition(":")[0]
        if kind == "apc":
            owner = _holder(image, address)
            yield _structure(image, owner, str(name), "_KAPC", address)
            header = memory.size("_POOL_HEADER")
            yield _range(image, owner, f"header of {name}", address - header, header)
        elif kind == "module":
            yield _structure(image, EVERYBODY, str(name), module_type, address)
        elif kind in _KINDS:
            yield _structure(image, EVERYBODY, str(name), _KINDS[kind], address)
        elif kind == "driver" or name == "nt":
            yield _range(image, EVERYBODY, f"headers of {name}", address, _HEADERS)
    pointer = memory.pointer_size
    for symbol in _VARIABLES:
        if image.kernel.has(symbol):
            members = tuple((each * pointer, pointer) for each in range(2))
            yield _range(image, EVERYBODY, symbol, image.kernel.address(symbol), 2 * pointer, members, (0,))
    table = memory.read_pointer(image.kernel.address("PspCidTable"))
    code = memory.read(table, "_HANDLE_TABLE", "TableCode")
    offset = memory.offset("_HANDLE_TABLE", "TableCode")
    yield _range(image, EVERYBODY, "PspCidTable's table", table, memory.size("_HANDLE_TABLE"), ((offset, pointer),))
    yield _range(image, EVERYBODY, "PspCidTable's top page", code & ~7, PAGE)
    for physical, data in memory.space.tables().items():
        yield Target(frozenset(), f"page table {physical:#x}", 0, len(data), (), (), ((0, physical, len(data)),))


def _holder(image: Image, apc: int) -> int:
    """Return the thread on whose list a KAPC was queued: a lie in KAPC.Thread is part of some scenes."""
    for name, address in image.address_of.items():
        if address == apc and isinstance(name, str) and name.startswith("apc:"):
            tid = name.split(":")[1]
            if tid.isdigit():
                return image.address_of[int(tid)]
    return image.memory.read(apc, "_KAPC", "Thread")


def _structure(image: Image, owner: int, name: str, type_name: str, address: int) -> Target:
    layout = image.memory.layout
    fields, links = {}, []
    for path in _MEMBERS[type_name]:
        if layout.has(type_name, path):
            member = layout.field(type_name, path)
            fields[path] = (member.offset, member.size)
            if path.endswith(".Flink"):
                links.append(member.offset)
    found = _range(image, owner, name, address, layout.size(type_name), tuple(fields.values()), tuple(links))
    return replace(found, fields=fields)


def _range(
    image: Image,
    owner: int,
    name: str,
    address: int,
    size: int,
    members: tuple[tuple[int, int], ...] = (),
    links: tuple[int, ...] = (),
) -> Target:
    pieces = []
    offset = 0
    while offset < size:
        length = min(size - offset, PAGE - (address + offset) % PAGE)
        with contextlib.suppress(NotMappedError):
            pieces.append((offset, image.memory.space.physical_address(address + offset), length))
        offset += length
    return Target(frozenset({owner}), name, address, size, members, links, tuple(pieces))
