"""A process's user space laid out: images, private memory, PEB, TEBs and loader data, and a VAD for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from apcaudit.synthetic.kernels import own_layout
from apcaudit.synthetic.machine import Machine, SceneError
from apcaudit.synthetic.memory import Memory
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Process
from apcaudit.synthetic.user import Region, UserImage, UserSpace
from apcaudit.synthetic.userspace import vads
from apcaudit.synthetic.userspace.images import Images, Mapped, is_64bit, place_section
from apcaudit.synthetic.userspace.page_tables import UserPages
from apcaudit.synthetic.userspace.vads import Vad

#: The page of KUSER_SHARED_DATA in user space, which every process has.
SHARED_DATA = 0x7FFE0000
#: Where private memory begins; ours.
_PRIVATE = {False: 0x01000000, True: 0x20F00000000}
#: Windows reserves address space in steps of so many bytes.
_GRANULARITY = 0x10000
_HEAP = 0x10000
#: CONTEXT_FULL of each processor (winnt.h).
_CONTEXT_FULL = {"Eip": 0x10007, "Rip": 0x10000B}
#: LDRP_IMAGE_DLL, LDRP_ENTRY_PROCESSED and LDRP_PROCESS_ATTACH_CALLED (ReactOS, ldrtypes.h).
_LDR_FLAGS = 0x84004


@dataclass(slots=True)
class _Building:
    """A process's user space in the making; `next` is the next free address of private memory."""

    machine: Machine
    process: Process
    space: UserSpace
    memory: Memory
    pages: UserPages
    next: int
    vads: list[Vad] = field(default_factory=list)

    def reserve(self, size: int, base: int | None = None) -> int:
        """Take private address space."""
        if base is not None:
            return base
        base = self.next
        self.next += -(-size // _GRANULARITY) * _GRANULARITY
        return base


class _Heap:
    """Memory of a process from which its loader data are taken."""

    def __init__(self, memory: Memory, start: int) -> None:
        self.memory = memory
        self._next, self._end = start, start + _HEAP
        memory.space.map(start, PAGE)

    def take(self, size: int) -> int:
        at = self._next
        self._next += -(-size // 16) * 16
        if self._next > self._end:
            raise SceneError("too many images for a heap")
        self.memory.space.map(at, size)
        return at

    def string(self, address: int, text: str) -> None:
        """Write a UNICODE_STRING at an address, its text in the heap."""
        data = text.encode("utf-16-le")
        write_string(self.memory, address, data, self.take(len(data) + 2))


def write_string(memory: Memory, address: int, data: bytes, buffer: int) -> None:
    """Write a UNICODE_STRING and its text."""
    memory.space.write(buffer, data)
    memory.write(address, "_UNICODE_STRING", "Length", len(data))
    memory.write(address, "_UNICODE_STRING", "MaximumLength", len(data) + 2)
    memory.write(address, "_UNICODE_STRING", "Buffer", buffer)


def place(machine: Machine, process: Process, body: int) -> None:
    """Lay out the user space of a process (`body` is its _EPROCESS), its threads' TEBs included."""
    space = process.space
    if space is None:
        raise SceneError(f"{process.name} has no user space of its own")
    pages = UserPages(machine.kernel, machine.memory.space)
    machine.user_pages[process.pid] = pages
    if machine.user_images is None:
        machine.user_images = Images(machine)
        machine.user_pool.types = machine.pool.types
    memory = Memory(machine.kernel, pages)
    # All that 32-bit code uses lies below 4 GiB.
    private = _PRIVATE[machine.kernel.is_64bit and machine.kernel.version >= (6, 2, 0) and not process.wow64]
    building = _Building(machine, process, space, memory, pages, private)
    _map_shared_data(building)
    images = [_map_image(building, machine.user_images, image) for image in _images(process, space)]
    peb = _place_blocks(building, body)
    for region in space.regions:
        _place_region(building, region)
    _place_loader_data(building, body, peb, images)
    for address, data in space.patches.items():
        _patch(pages, machine.resolve(address), data, images)
    for address, how in space.trimmed.items():
        _trim(pages, machine.resolve(address), how, images)
    for region in space.regions:
        _fill_region(building, region)
    nodes = vads.place(machine.memory, machine.user_pool, body, building.vads)
    machine.user_vads[process.pid] = sorted(building.vads, key=lambda vad: vad.start)
    machine.address_of |= {f"vad:{process.pid}:{start:#x}": node for start, node in nodes.items()}
    machine.memory.write(body, "_EPROCESS", "Pcb.DirectoryTableBase", pages.root)


def _images(process: Process, space: UserSpace) -> list[UserImage]:
    """Give the process's images, its program first."""
    if any(image.name == process.name for image in space.images):
        ordered = sorted(space.images, key=lambda image: image.name != process.name)
    else:
        ordered = [UserImage(process.name, size=0x6000, bits=32 if process.wow64 else None), *space.images]
    return ordered


def _map_shared_data(building: _Building) -> None:
    machine = building.machine
    machine.memory.space.map(machine.ranges.shared_data, PAGE)
    frame = machine.memory.space.physical_address(machine.ranges.shared_data)
    building.pages.map_frame(SHARED_DATA, frame, "READONLY")
    building.vads.append(Vad(SHARED_DATA, PAGE, "READONLY"))


def _map_image(building: _Building, images: Images, image: UserImage) -> Mapped:
    mapped = images.get(image, building.pages, program=image.name == building.process.name)
    absent = {rva // PAGE for rva in image.absent}
    for number, protection in enumerate(mapped.protections):
        address, state = mapped.base + number * PAGE, "demand-zero" if number in absent else "valid"
        building.pages.map_frame(address, mapped.physical + number * PAGE, protection, state)
        if number in absent:
            building.pages.set_entry(address, 0)
    writable = sum(protection == "WRITECOPY" for protection in mapped.protections)
    building.vads.append(
        Vad(mapped.base, mapped.size, "EXECUTE_WRITECOPY", False, True, writable, mapped.section, mapped.path)
    )
    return mapped


def _place_blocks(building: _Building, body: int) -> int:
    """Make the PEB and behind it a TEB for each thread."""
    memory, machine, process = building.memory, building.machine, building.process
    stride = -(-memory.size("_TEB") // PAGE) * PAGE
    size = -(-memory.size("_PEB") // PAGE) * PAGE + stride * len(process.threads)
    peb = building.reserve(size)
    memory.space.map(peb, size)
    building.vads.append(Vad(peb, size, "READWRITE", commit=size // PAGE))
    machine.memory.write(body, "_EPROCESS", "Peb", peb)
    machine.address_of[f"peb:{process.pid}"] = peb
    for number, thread in enumerate(process.threads):
        teb = peb + size - (len(process.threads) - number) * stride
        machine.address_of[f"teb:{thread.tid}"] = teb
        memory.write(teb, "_TEB", "NtTib.Self", teb, optional=True)
        memory.write(teb, "_TEB", "ClientId.UniqueProcess", process.pid)
        memory.write(teb, "_TEB", "ClientId.UniqueThread", thread.tid)
        memory.write(teb, "_TEB", "ProcessEnvironmentBlock", peb)
    return peb


def place_teb_pointer(machine: Machine, tid: int, body: int) -> None:
    """Let a thread (the address of its _ETHREAD) point to its TEB, if its process has one."""
    teb = machine.address_of.get(f"teb:{tid}")
    if teb is not None:
        machine.memory.write(body, "_ETHREAD", "Tcb.Teb", teb)


def _place_region(building: _Building, region: Region) -> None:
    machine, pages = building.machine, building.pages
    if region.state == "large":
        building.next = -(-building.next // pages.large_size) * pages.large_size
    size = -(-region.size // PAGE) * PAGE
    base = building.reserve(size, region.base)
    name = f"memory:{region.label}"
    if name in machine.address_of:
        raise SceneError(f"two regions of memory named {region.label}")
    machine.address_of[name] = base
    touched = size // PAGE if region.pages is None else region.pages
    protection = region.page_protection or region.protection
    section = None
    if region.state in ("demand-zero", "large"):
        touched = 0
    for at in range(base, base + size, pages.large_size) if region.state == "large" else ():
        pages.map_large(at, protection)
    physical = pages.take_frames(touched)
    if not region.private:
        section = place_section(machine, pages, physical, [protection] * touched, None)
    for number in range(touched):
        pages.map_frame(base + number * PAGE, physical + number * PAGE, protection, region.state)
    commit = size // PAGE if region.private else 0
    building.vads.append(Vad(base, size, region.protection, region.private, False, commit, section))


def _fill_region(building: _Building, region: Region) -> None:
    machine, memory = building.machine, building.memory
    base = machine.address_of[f"memory:{region.label}"]
    for offset, data in region.content.items():
        memory.space.write(base + offset, data)
    for offset, registers in region.contexts.items():
        pointer = "Rip" if machine.kernel.is_64bit else "Eip"
        memory.write(base + offset, "_CONTEXT", "ContextFlags", _CONTEXT_FULL[pointer])
        for register, value in registers.items():
            memory.write(base + offset, "_CONTEXT", register, machine.resolve(value))
    for offset, text in region.strings.items():
        at = base + offset
        write_string(memory, at, text.encode("utf-16-le"), at + memory.size("_UNICODE_STRING"))


def _mapped_at(images: list[Mapped], address: int) -> Mapped:
    for mapped in images:
        if mapped.base <= address < mapped.base + mapped.size:
            return mapped
    raise SceneError(f"{address:#x} lies in no image")


def _patch(pages: UserPages, address: int, data: bytes, images: list[Mapped]) -> None:
    """Write over an image's pages, each of which becomes the process's own."""
    for page in range(address & ~(PAGE - 1), address + len(data), PAGE):
        mapped = _mapped_at(images, page)
        content = pages.read(page, PAGE)
        frame = pages.take_frames(1)
        pages.write_frames(frame, content)
        protection = mapped.protections[(page - mapped.base) // PAGE]
        pages.map_frame(page, frame, "READWRITE" if protection == "WRITECOPY" else protection)
    pages.write(address, data)


def _trim(pages: UserPages, address: int, how: str, images: list[Mapped]) -> None:
    """Take a page of an image out of the working set; the section keeps it."""
    mapped = _mapped_at(images, address)
    number = (address - mapped.base) // PAGE
    protection, entries = mapped.protections[number], pages.entries
    prototype = mapped.section.first_prototype + number * entries.size
    entry = {
        "prototype": entries.prototype(prototype, protection),
        "lookup": entries.lookup(protection),
        "unused": 0,
    }
    pages.set_entry(address, entry[how])


def _place_loader_data(building: _Building, body: int, peb: int, images: list[Mapped]) -> None:
    """Write what the PEB leads to: parameters, and once the process has run, the loader's lists."""
    machine, memory, process = building.machine, building.memory, building.process
    start = building.reserve(_HEAP)
    heap = _Heap(memory, start)
    building.vads.append(Vad(start, _HEAP, "READWRITE", commit=_HEAP // PAGE))
    program = images[0]
    machine.memory.write(body, "_EPROCESS", "SectionBaseAddress", program.base, optional=True)
    if memory.has("_EPROCESS", "ImageFilePointer"):
        machine.memory.write(body, "_EPROCESS", "ImageFilePointer", program.section.file_object)
    native = [each for each in images if each is program or is_64bit(machine, each.image) == machine.kernel.is_64bit]
    _place_lists(building, heap, peb, native)
    if process.wow64 and machine.kernel.is_64bit:
        _place_wow64(building, body, images)


def _place_lists(building: _Building, heap: _Heap, peb: int, images: Sequence[Mapped]) -> None:
    memory = heap.memory
    program = images[0]
    path = f"C:{program.image.path}\\{program.image.name}"
    memory.write(peb, "_PEB", "ImageBaseAddress", program.base)
    parameters = heap.take(memory.size("_RTL_USER_PROCESS_PARAMETERS"))
    memory.write(peb, "_PEB", "ProcessParameters", parameters)
    for member, text in (("ImagePathName", path), ("CommandLine", f'"{path}"')):
        heap.string(parameters + memory.offset("_RTL_USER_PROCESS_PARAMETERS", member), text)
    if not building.space.has_run:
        return
    loader = heap.take(memory.size("_PEB_LDR_DATA"))
    memory.write(peb, "_PEB", "Ldr", loader)
    memory.write(loader, "_PEB_LDR_DATA", "Length", memory.size("_PEB_LDR_DATA"), optional=True)
    memory.write(loader, "_PEB_LDR_DATA", "Initialized", 1, optional=True)
    listed = [each for each in images if each.image.key not in building.space.unlisted]
    entries = [_place_entry(heap, each) for each in listed]
    for name, links, members in (
        ("InLoadOrderModuleList", "InLoadOrderLinks", entries),
        ("InMemoryOrderModuleList", "InMemoryOrderLinks", entries),
        ("InInitializationOrderModuleList", "InInitializationOrderLinks", entries[1:]),
    ):
        offset = memory.offset("_LDR_DATA_TABLE_ENTRY", links)
        memory.link(loader + memory.offset("_PEB_LDR_DATA", name), [entry + offset for entry in members])


def _place_entry(heap: _Heap, mapped: Mapped) -> int:
    memory, kind = heap.memory, "_LDR_DATA_TABLE_ENTRY"
    entry = heap.take(memory.size(kind))
    for path, value in (
        ("DllBase", mapped.base),
        ("EntryPoint", mapped.base + PAGE),
        ("SizeOfImage", mapped.size),
        ("Flags", _LDR_FLAGS),
        ("LoadCount", 1),
        ("ObsoleteLoadCount", 1),
    ):
        memory.write(entry, kind, path, value, optional=True)
    heap.string(entry + memory.offset(kind, "FullDllName"), f"C:{mapped.image.path}\\{mapped.image.name}")
    heap.string(entry + memory.offset(kind, "BaseDllName"), mapped.image.name)
    return entry


def _place_wow64(building: _Building, body: int, images: list[Mapped]) -> None:
    """Make the 32-bit PEB with its loader data, in structures of 32-bit Windows of the same age."""
    machine, kernel = building.machine, building.machine.kernel
    layout, _ = own_layout("10-19041-x86" if kernel.version >= (6, 2, 0) else "7-sp1-x86")
    memory = Memory(replace(kernel, layout=layout), building.pages)
    base = building.reserve(_HEAP, 0x00F00000)
    heap = _Heap(memory, base)
    building.vads.append(Vad(base, _HEAP, "READWRITE", commit=_HEAP // PAGE))
    peb = heap.take(memory.size("_PEB"))
    machine.address_of[f"peb32:{building.process.pid}"] = peb
    _place_lists(building, heap, peb, [each for each in images if not is_64bit(machine, each.image)])
    pointer = peb
    if machine.memory.layout.has_type("_EWOW64PROCESS"):
        pointer = machine.user_pool.allocate(machine.memory.size("_EWOW64PROCESS"), b"PsWo")
        machine.memory.write(pointer, "_EWOW64PROCESS", "Peb", peb)
    for name in ("WoW64Process", "Wow64Process"):
        machine.memory.write(body, "_EPROCESS", name, pointer, optional=True)
