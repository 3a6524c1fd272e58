"""Garbage: what lies in an ordinary machine's pool and looks like a thread to whoever asks for little."""

from __future__ import annotations

from dataclasses import dataclass

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.pages import PAGE

#: IO_TYPE_IRP (wdm.h), the same number as KOBJECTS ThreadObject: an IRP begins like a thread's dispatcher header.
_IO_TYPE_IRP = 6

#: Node type 0x0306 and node size 0x88, as a file system's control block begins.
_CONTROL_BLOCK = bytes.fromhex("06038800")

#: A number 6 with nothing behind it, as text lengths, registry cells and reference counts have it.
_SIX = bytes.fromhex("0600000000000000")

#: Bytes of a block that is too small for a thread, and for the headers in front of one.
_SMALL = 0x10

#: What fills the pool around: text, every eighth byte of which is some letter's low half. Where a thread's process
#: would be, it reads as an address such as 0x360065 that nothing maps.
_TEXT = r"\Device\HarddiskVolume1\Windows\System32\config\e6e6e6e6".encode("utf-16-le")

#: The rings that point to themselves in a calm thread: each piece of garbage has an empty list where one of them is.
_RINGS = (
    "Tcb.Header.WaitListHead",
    "Tcb.MutantListHead",
    "Tcb.ApcState.ApcListHead[0]",
    "Tcb.ApcState.ApcListHead[1]",
    "ActiveTimerListHead",
    "IrpList",
)


@dataclass(frozen=True, slots=True)
class Garbage:
    """One piece of garbage: what it is, and where it begins and ends in virtual memory."""

    what: str
    start: int
    end: int

    def holds(self, address: int) -> bool:
        """Tell whether a virtual address lies in it."""
        return self.start <= address < self.end


def plant(image: Image) -> tuple[Garbage, ...]:
    """Fill pool of a built image with everything that this module knows."""
    return (
        *idle_irps(image),
        *control_blocks(image),
        *registry_data(image),
        *reused_thread_blocks(image),
        *thread_copies(image),
    )


def idle_irps(image: Image) -> tuple[Garbage, ...]:
    """Allocate IRPs as their drivers keep them: no MDL, no thread, of one and of two stack locations.

    Type is 6; on x86 MdlAddress is where a thread has SignalState, and on 5.1 the empty ThreadListEntry is where it
    has MutantListHead.
    """
    memory = image.memory
    found = []
    for locations in (1, 2):
        size = memory.size("_IRP") + locations * memory.size("_IO_STACK_LOCATION")
        irp, end = _with_text_behind(image, size, b"Irp ")
        for path, value in (("Type", _IO_TYPE_IRP), ("Size", size), ("StackCount", locations)):
            memory.write(irp, "_IRP", path, value)
        memory.write(irp, "_IRP", "CurrentLocation", locations + 1)
        memory.link(irp + memory.offset("_IRP", "ThreadListEntry"), [])
        found.append(Garbage(f"idle IRP, {locations} stack locations", irp, end))
    return tuple(found)


def control_blocks(image: Image) -> tuple[Garbage, ...]:
    """Allocate control blocks of a file system, one for each list of a thread that it may have an empty list at."""
    return tuple(_with_ring(image, "control block", _CONTROL_BLOCK.ljust(8, b"\0"), b"FsFc", ring) for ring in _RINGS)


def registry_data(image: Image) -> tuple[Garbage, ...]:
    """Allocate text and registry-like data that begin with a number 6, with one empty list in each."""
    return tuple(_with_ring(image, "registry data", _SIX, b"CM25", ring) for ring in _RINGS)


def reused_thread_blocks(image: Image) -> tuple[Garbage, ...]:
    """Leave a thread's pool tag on blocks that something else has: small ones, and some as large as a thread's."""
    pool = image.pool
    tag, prefix = pool.types["Thread"].tag, pool.object_prefix(named=False)
    whole = prefix + image.memory.size("_ETHREAD")
    found = []
    for ring in _RINGS:
        # Where a body would be, behind an object header, the block has ended and its neighbour is text.
        block, end = _with_text_behind(image, _SMALL, tag)
        _look_alike(image, block + prefix, _SIX, ring)
        found.append(Garbage(f"small block with a thread's tag, {ring}", block, end))
        block = pool.allocate(whole, tag)
        image.write(block, _text(whole))
        _look_alike(image, block + prefix, _SIX, ring)
        found.append(Garbage(f"large block with a thread's tag, {ring}", block, block + whole))
    return tuple(found)


def thread_copies(image: Image) -> tuple[Garbage, ...]:
    """Copy the first thread into other pages: its page as it is, its first part alone, and all of it shifted.

    Dumps in memory, caches and buffers hold such copies.
    """
    memory, pool = image.memory, image.pool
    # By TID; 0 is the idle threads'.
    body = next(address for name, address in image.address_of.items() if isinstance(name, int) and name)
    start, size = body & -PAGE, memory.size("_ETHREAD")
    page = pool.take_pages(PAGE)
    image.write(page, image.read(start, PAGE) if memory.space.is_mapped(start + PAGE - 1) else bytes(PAGE))
    part = pool.take_pages(PAGE)
    known = min(size, PAGE - body % PAGE)
    image.write(part + body % PAGE, image.read(body, known // 2))
    shifted = pool.take_pages(2 * PAGE)
    at = shifted + (body % PAGE + 8 * pool.alignment) % PAGE
    image.write(at, image.read(body, size))
    return (
        Garbage("copy of a thread's page", page, page + PAGE),
        Garbage("copy of a thread's first half", part, part + PAGE),
        Garbage("copy of a thread at another offset", shifted, shifted + 2 * PAGE),
    )


def _with_ring(image: Image, what: str, header: bytes, tag: bytes, ring: str) -> Garbage:
    size = image.memory.size("_ETHREAD")
    block = image.pool.allocate(size, tag)
    image.write(block, _text(size))
    _look_alike(image, block, header, ring)
    return Garbage(f"{what}, {ring}", block, block + size)


def _look_alike(image: Image, at: int, header: bytes, ring: str) -> None:
    """Write a header that reads as a dispatcher header, one empty list, and a state that a thread can have."""
    memory = image.memory
    image.write(at, header)
    memory.link(at + memory.offset("_ETHREAD", ring), [])
    memory.write(at, "_ETHREAD", "Tcb.State", 0)


def _with_text_behind(image: Image, size: int, tag: bytes) -> tuple[int, int]:
    """Allocate a block at the start of a page, its neighbour one of text that is as large as a thread.

    Returns:
        Where the block begins behind its header, and where the text ends.
    """
    pool, text = image.pool, image.memory.size("_ETHREAD")
    header = image.memory.size("_POOL_HEADER")
    block = pool.allocate(size, tag, pool.take_pages(PAGE) + header)
    behind = pool.allocate(text, b"ObNm", block + -(-size // pool.alignment) * pool.alignment + header)
    image.write(behind, _text(text))
    return block, behind + text


def _text(size: int) -> bytes:
    return (_TEXT * (size // len(_TEXT) + 1))[:size]
