"""Damage: each function replays on a built image an event that corrupts APC queues in real memory."""

from __future__ import annotations

from apcaudit.synthetic.apcs import QUEUES
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.machine import SceneError


def head(image: Image, tid: int, queue: str = "kernel_apcs") -> int:
    """Give the address of a thread's APC list head; `queue` is named as in `scene.Thread`."""
    state, index = QUEUES[queue]
    return image.address_of[tid] + image.memory.offset("_ETHREAD", f"{state}.ApcListHead[{index}]")


def links(image: Image, tid: int, queue: str = "kernel_apcs") -> list[int]:
    """Give the addresses of the links on a thread's intact APC list."""
    return image.memory.entries(head(image, tid, queue))


def make_cycle(image: Image, tid: int, queue: str = "kernel_apcs") -> None:
    """Let the last entry lead back to the first: two processors inserted the same KAPC at once, without the lock."""
    entries = _at_least(image, tid, queue, 1)
    image.memory.write_pointer(entries[-1], entries[0])
    image.memory.write_pointer(entries[0] + image.memory.pointer_size, entries[-1])


def break_back_link(image: Image, tid: int, queue: str = "kernel_apcs") -> None:
    """Clear the first entry's Blink: the structure was freed and its pool block's free list link written over it."""
    entries = _at_least(image, tid, queue, 1)
    image.memory.write_pointer(entries[0] + image.memory.pointer_size, 0)


def point_flink_to_unmapped(image: Image, tid: int, queue: str = "kernel_apcs") -> int:
    """Let the last entry lead to memory that is gone: its successor's driver was unloaded with its pages.

    Returns:
        The address that it leads to.
    """
    entries = _at_least(image, tid, queue, 1)
    target = image.kernel.base - 0x400000 + 0x18
    if image.memory.space.is_mapped(target):
        raise SceneError(f"{target:#x} is mapped after all")
    image.memory.write_pointer(entries[-1], target)
    return target


def misalign_link(image: Image, tid: int, queue: str = "kernel_apcs") -> None:
    """Add one to the head's Flink: a stray increment of what a driver took for its reference count."""
    _at_least(image, tid, queue, 1)
    at = head(image, tid, queue)
    image.memory.write_pointer(at, image.memory.read_pointer(at) + 1)


def unmap_page(image: Image, address: int) -> None:
    """Take a page out: it was paged out, or the acquisition could not read it."""
    image.memory.space.unmap(address)


def cross_link(image: Image, tid: int, other: int, queue: str = "kernel_apcs") -> None:
    """Hang a thread's first KAPC on another thread's list too: it was queued again while it was queued already."""
    entry = _at_least(image, tid, queue, 1)[0]
    # InsertTailList on the other list, with the first list's neighbours left as they are.
    image.memory.append(head(image, other, queue), entry)


def unlink_by_self_link(image: Image, tid: int, queue: str = "kernel_apcs") -> None:
    """Let the list head point to itself, the KAPCs left behind: what the public kernel exploits' APC does."""
    image.memory.link(head(image, tid, queue), [])


def corrupt_type(image: Image, apc: int, value: int = 0) -> None:
    """Overwrite a KAPC's Type: its memory was used again for something else."""
    image.memory.write(apc, "_KAPC", "Type", value)


def corrupt_size(image: Image, apc: int, value: int = 0) -> None:
    """Overwrite a KAPC's Size: it was filled in by hand rather than by KeInitializeApc."""
    image.memory.write(apc, "_KAPC", "Size", value)


def overwrite_pool_tag(image: Image, address: int, tag: bytes = b"None") -> None:
    """Replace the pool tag of a thread object: what hides an object from scans by tag.

    The object has to have no optional headers, as the threads of these scenes.
    """
    body_offset = image.memory.offset("_OBJECT_HEADER", "Body")
    header = address - body_offset - image.memory.size("_POOL_HEADER")
    image.memory.write(header, "_POOL_HEADER", "PoolTag", int.from_bytes(tag, "little"))


def hide_thread(image: Image, address: int) -> None:
    """Unlink an _ETHREAD from both rings of its process, as a rootkit hides its thread; its own links stay."""
    memory = image.memory
    for path in ("ThreadListEntry", "Tcb.ThreadListEntry"):
        entry = address + memory.offset("_ETHREAD", path)
        flink, blink = memory.read_pointer(entry), memory.read_pointer(entry + memory.pointer_size)
        memory.write_pointer(blink, flink)
        memory.write_pointer(flink + memory.pointer_size, blink)


def _at_least(image: Image, tid: int, queue: str, count: int) -> list[int]:
    entries = links(image, tid, queue)
    if len(entries) < count:
        raise SceneError(f"thread {tid} has no KAPC in {queue} to damage")
    return entries
