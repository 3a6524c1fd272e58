"""Adversaries: each function replays on a built image what somebody did who knows that the image will be audited."""

from __future__ import annotations

from collections.abc import Iterable

from apcaudit.synthetic.damage import head, links
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.pages import PAGE

ENDLESS = 8192
"""How many KAPCs an endless list is made of: twice what an audit follows; the last one leads into it again."""


def endless_list(image: Image, tid: int, at: int) -> None:
    """Thread a list through valid-looking KAPCs without end: copies of the thread's first one, chained.

    Args:
        image: the image.
        tid: the thread, which has a kernel APC.
        at: virtual address that nothing else uses, where the copies are laid.
    """
    memory = image.memory
    offset, size = memory.offset("_KAPC", "ApcListEntry"), -(-memory.size("_KAPC") // 16) * 16
    first = links(image, tid)[0] - offset
    content = image.read(first, memory.size("_KAPC"))
    memory.space.map(at, ENDLESS * size)
    previous = first + offset
    for number in range(ENDLESS):
        apc = at + number * size
        image.write(apc, content)
        memory.write_pointer(previous, apc + offset)
        memory.write_pointer(apc + offset + memory.pointer_size, previous)
        previous = apc + offset
    # Back to the head of nobody: the chain has no end, and no entry of it comes twice before the bound.
    memory.write_pointer(previous, at + offset)


def one_loop(image: Image, tids: Iterable[int], count: int) -> None:
    """Let the kernel list of every thread lead into one loop of so many KAPCs, which no list's head is part of."""
    memory = image.memory
    tids = list(tids)
    offset, size = memory.offset("_KAPC", "ApcListEntry"), memory.size("_KAPC")
    content = image.read(links(image, tids[0])[0] - offset, size)
    stride = -(-size // image.pool.alignment) * image.pool.alignment
    at = image.pool.take_pages(count * stride)
    entries = [at + number * stride + offset for number in range(count)]
    for entry in entries:
        image.write(entry - offset, content)
    for entry, following in zip(entries, (*entries[1:], entries[0]), strict=True):
        memory.write_pointer(entry, following)
        memory.write_pointer(following + memory.pointer_size, entry)
    for tid in tids:
        memory.write_pointer(head(image, tid), entries[0])


def overlapping_processes(image: Image, count: int) -> None:
    """Put so many processes at the end of the list that lie in one another's memory, a few bytes apart."""
    memory = image.memory
    offset = memory.offset("_EPROCESS", "ActiveProcessLinks")
    list_head = image.kernel.address("PsActiveProcessHead")
    body, stride = memory.size("_EPROCESS"), 2 * memory.pointer_size
    at = image.pool.take_pages(body + count * stride)
    entries = [*memory.entries(list_head), *(at + number * stride + offset for number in range(count))]
    memory.link(list_head, entries)


def inside_another(image: Image, tid: int) -> None:
    """Hang a KAPC on the list that begins within the first one, where its arguments are."""
    memory = image.memory
    entry = links(image, tid)[0]
    inner = entry + 4 * memory.pointer_size
    memory.link(head(image, tid), [entry, inner])


def entry_at(image: Image, tid: int, address: int) -> None:
    """Move the thread's first KAPC to an address, mapped if it is not, and hang it on the list there."""
    memory = image.memory
    offset, size = memory.offset("_KAPC", "ApcListEntry"), memory.size("_KAPC")
    old = links(image, tid)[0] - offset
    content = image.read(old, size)
    memory.space.map(address, size)
    image.write(address, content)
    memory.link(head(image, tid), [address + offset])


def claim_process(image: Image, tid: int, process: str) -> None:
    """Let a thread claim another process in every member that names its owner."""
    memory, body = image.memory, image.address_of[tid]
    other = image.address_of[f"process:{process}"]
    pid = memory.read(other, "_EPROCESS", "UniqueProcessId")
    memory.write(body, "_ETHREAD", "Cid.UniqueProcess", pid)
    memory.write(body, "_ETHREAD", "Tcb.ApcState.Process", other)
    for path in ("Tcb.Process", "ThreadsProcess"):
        memory.write(body, "_ETHREAD", path, other, optional=True)


def skip_process(image: Image, process: str) -> None:
    """Unlink a process from PsActiveProcessHead as DKOM does: its neighbours are joined, its own links stay."""
    memory = image.memory
    entry = image.address_of[f"process:{process}"] + memory.offset("_EPROCESS", "ActiveProcessLinks")
    flink, blink = memory.read_pointer(entry), memory.read_pointer(entry + memory.pointer_size)
    memory.write_pointer(blink, flink)
    memory.write_pointer(flink + memory.pointer_size, blink)


def claim_range(image: Image, module: str, base: int, size: int) -> None:
    """Overwrite a module's entry, so that its range covers other modules or memory of none."""
    entry = image.address_of[f"module:{module}"]
    kind = "_KLDR_DATA_TABLE_ENTRY"
    kind = kind if image.memory.layout.has_type(kind) else "_LDR_DATA_TABLE_ENTRY"
    image.memory.write(entry, kind, "DllBase", base)
    image.memory.write(entry, kind, "SizeOfImage", size)


def scatter_exports(image: Image, driver: str) -> None:
    """Let every function of a driver's export table, and its table of names, point everywhere."""
    base = image.address_of[f"driver:{driver}"]
    pe = int.from_bytes(image.read(base + 0x3C, 4), "little")
    directory = base + pe + 24 + (112 if image.kernel.is_64bit else 96)
    table = base + int.from_bytes(image.read(directory, 4), "little")
    # NumberOfFunctions, NumberOfNames, and the three tables behind them.
    for offset, value in ((20, 0xFFFFFFFF), (24, 0x7FFFFFFF), (28, 0xFFFFFFF0), (32, 0x10), (36, 0x80000000)):
        image.write(table + offset, value.to_bytes(4, "little"))


def endless_irp(image: Image, label: str) -> None:
    """Let an IRP claim as many stack locations as the count can say, far beyond its page."""
    irp = image.address_of[f"irp:{label}"]
    image.memory.write(irp, "_IRP", "StackCount", 127)
    image.memory.write(irp, "_IRP", "CurrentLocation", 127)


def fill_cid_table(image: Image, value: int) -> None:
    """Let every free entry of PspCidTable's first page name one address."""
    memory = image.memory
    table = memory.read_pointer(image.kernel.address("PspCidTable"))
    page = memory.read(table, "_HANDLE_TABLE", "TableCode") & ~7
    size = memory.size("_HANDLE_TABLE_ENTRY")
    for at in range(page + size, page + PAGE, size):
        if not any(image.read(at, size)):
            image.write(at, (value & memory.layout.pointer_mask | 1).to_bytes(8, "little")[:size].ljust(size, b"\0"))
