"""Read members of kernel structures one by one, where a structure is not worth a decoder."""

from __future__ import annotations

from .memory import Memory
from .model import Ending
from .queues import walk
from .symbols import KernelSymbols
from .text import from_utf16


class Apart:
    """Objects of one structure that were met, no two of which overlap in memory.

    Args:
        size: of the structure, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = max(size, 1)
        self._met: dict[int, int] = {}

    def takes(self, address: int) -> bool:
        """Remember the object at a virtual address, unless it overlaps one that is remembered; tell which."""
        here, size, met = address // self._size, self._size, self._met
        for place in (here - 1, here, here + 1):
            other = met.get(place)
            if other is not None and abs(other - address) < size:
                return other == address
        met[here] = address
        return True


def read_member(memory: Memory, symbols: KernelSymbols, structure: str, path: str, address: int) -> int | None:
    """Read one integer or pointer member of a structure at a virtual address."""
    member = symbols.member(structure, path)
    data = None if member is None else memory.read(address + member.offset, member.size)
    if member is None or data is None:
        return None
    value = int.from_bytes(data, "little", signed=member.signed)
    return value if member.bits is None else (value >> member.shift) & ((1 << member.bits) - 1)


def read_unicode_string(
    memory: Memory, symbols: KernelSymbols, structure: str, path: str, address: int, bound: int = 1024
) -> str | None:
    """Read a UNICODE_STRING member, at most `bound` bytes of it."""
    length = read_member(memory, symbols, structure, f"{path}.Length", address)
    buffer = read_member(memory, symbols, structure, f"{path}.Buffer", address)
    if not length or not buffer:
        return None
    data = memory.read(buffer, min(length, bound) & ~1)
    return None if data is None else from_utf16(data)


def both_ways(memory: Memory, head: int, bound: int, *, skipped: bool = False) -> tuple[tuple[int, ...], bool]:
    """Follow a LIST_ENTRY ring by its Flinks and, where that does not close, by its Blinks.

    Args:
        memory: the image.
        head: virtual address of the ring's head.
        bound: how many entries are followed.
        skipped: whether entries that only the Blinks lead to are wanted too where the Flinks close.

    Returns:
        The LIST_ENTRY addresses, and whether the ring closed.
    """
    forward = walk(memory.links, head, pointer_size=memory.pointer_size, bound=bound)
    closed = forward.ending is Ending.CLOSED
    if closed and not (skipped and forward.broken_at is not None):
        return forward.entries, True

    def mirrored(address: int) -> tuple[int, int] | None:
        links = memory.links(address)
        return None if links is None else (links[1], links[0])

    backward = walk(mirrored, head, pointer_size=memory.pointer_size, bound=bound)
    known = set(forward.entries)
    return forward.entries + tuple(entry for entry in reversed(backward.entries) if entry not in known), closed
