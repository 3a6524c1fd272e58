"""Events that move a thread's queued KAPC to another place."""

from __future__ import annotations

from apcaudit.synthetic.image import Image


def head(image: Image, tid: int) -> int:
    """Give the address of a thread's kernel APC list head."""
    return image.address_of[tid] + image.memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead[0]")


def move(image: Image, tid: int, label: str, address: int) -> None:
    """Replay a KAPC that was made elsewhere: the same bytes at an address, hung on the list instead of the old ones."""
    memory = image.memory
    size = memory.size("_KAPC")
    old = image.address_of[f"apc:{label}"]
    memory.space.map(address, size)
    image.write(address, image.read(old, size))
    image.write(old, bytes(size))
    memory.link(head(image, tid), [address + memory.offset("_KAPC", "ApcListEntry")])
    image.address_of[f"apc:{label}"] = address


def move_to_stack(image: Image, tid: int, label: str) -> None:
    """Replay a routine that keeps its KAPC in a local variable, on the stack of the thread that it is for."""
    base = image.memory.read(image.address_of[tid], "_ETHREAD", "Tcb.StackBase")
    move(image, tid, label, base - 0x200 - image.memory.size("_KAPC"))
