"""Reads kernel structures: members by name, lists both ways, strings, object names, the Windows version and time."""

from __future__ import annotations

from collections.abc import Callable

from ..formats.lists import walk
from ..formats.text import from_utf16
from ..model import Ending
from ..windows import SHARED_USER_DATA
from . import Memory
from .symbols import KernelSymbols


class DisjointObjects:
    """A set of objects of one structure, no two of which overlap in memory.

    Args:
        size: size of the structure in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = max(size, 1)
        self._met: dict[int, int] = {}

    def add(self, address: int) -> bool:
        """Add the object at a virtual address; return False if it overlaps another one and was not added."""
        here, size, met = address // self._size, self._size, self._met
        for place in (here - 1, here, here + 1):
            other = met.get(place)
            if other is not None and abs(other - address) < size:
                return other == address
        met[here] = address
        return True


def read_member(memory: Memory, symbols: KernelSymbols, structure: str, path: str, address: int) -> int | None:
    """Read an integer or pointer member of a structure; None where the type lacks it or memory cannot be read.

    `address` is the virtual address of the structure.
    """
    member = symbols.member(structure, path)
    data = None if member is None else memory.read(address + member.offset, member.size)
    if member is None or data is None:
        return None
    value = int.from_bytes(data, "little", signed=member.signed)
    return value if member.bits is None else (value >> member.shift) & ((1 << member.bits) - 1)


def read_unicode_string(
    memory: Memory, symbols: KernelSymbols, structure: str, path: str, address: int, bound: int = 1024
) -> str | None:
    """Read a UNICODE_STRING member, at most `bound` bytes; None where it is empty or cannot be read."""
    length = read_member(memory, symbols, structure, f"{path}.Length", address)
    buffer = read_member(memory, symbols, structure, f"{path}.Buffer", address)
    if not length or not buffer:
        return None
    data = memory.read(buffer, min(length, bound) & ~1)
    return None if data is None else from_utf16(data)


def walk_both_ways(memory: Memory, head: int, bound: int, *, skipped: bool = False) -> tuple[tuple[int, ...], bool]:
    """Follow a list by Flink and, where that does not return to the head, by Blink too.

    Args:
        memory: the image.
        head: virtual address of the list head.
        bound: how many entries are followed in each direction.
        skipped: whether to follow Blink also where the Flinks return to the head but a Blink disagrees; an entry that
            was unlinked from the Flinks alone is found then.

    Returns:
        The addresses of the LIST_ENTRYs, and whether the Flinks return to the head.
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


# _OBJECT_HEADER.InfoMask since 7: the optional headers that precede the header, the lowest bit's being closest
# (nt!ObpInfoMaskToOffset; codemachine.com, "Windows Object Headers").
_CREATOR_INFO, _NAME_INFO = 1, 2


def object_name(memory: Memory, symbols: KernelSymbols, body: int) -> str | None:
    """Read the name of an executive object; None where it has none or the headers cannot be read.

    Args:
        memory: the image.
        symbols: the kernel's symbols.
        body: virtual address of the object's body, which follows its _OBJECT_HEADER.
    """
    offset = symbols.member("_OBJECT_HEADER", "Body")
    size = symbols.size_of("_OBJECT_HEADER_NAME_INFO")
    if offset is None or not size:
        return None
    header = body - offset.offset
    mask = read_member(memory, symbols, "_OBJECT_HEADER", "InfoMask", header)
    if mask is not None:
        creator = symbols.size_of("_OBJECT_HEADER_CREATOR_INFO") or 0
        distance = size + (creator if mask & _CREATOR_INFO else 0) if mask & _NAME_INFO else 0
    else:
        # Before 7 the header has the distance itself.
        distance = read_member(memory, symbols, "_OBJECT_HEADER", "NameInfoOffset", header) or 0
    if not distance:
        return None
    return read_unicode_string(memory, symbols, "_OBJECT_HEADER_NAME_INFO", "Name", header - distance)


_BUILD_MASK = 0xFFFF  # the highest four bits of nt!NtBuildNumber are 0xF (free) or 0xC (checked) (WRK, init/initos.c)


def read_build(memory: Memory, address_of: Callable[[str], int | None]) -> int | None:
    """Return the build number (for example 19041) from nt!NtBuildNumber, else nt!NtBuildLab (`2600.xpsp_sp3_gdr...`).

    Args:
        memory: the image.
        address_of: returns the virtual address of a kernel symbol, None where the table lacks it.
    """
    number, lab = address_of("NtBuildNumber"), address_of("NtBuildLab")
    data = None if number is None else memory.read(number, 4)
    build = 0 if data is None else int.from_bytes(data, "little") & _BUILD_MASK
    if not build and lab is not None:
        digits = (memory.read(lab, 8) or b"").partition(b".")[0]
        build = int(digits) if digits.isdigit() else 0
    return build or None


def read_version(memory: Memory, symbols: KernelSymbols) -> tuple[int, int, int] | None:
    """Return the Windows version as (major, minor, build); None unless all of them can be read."""
    address = SHARED_USER_DATA[memory.pointer_size]
    major, minor = (
        read_member(memory, symbols, "_KUSER_SHARED_DATA", name, address)
        for name in ("NtMajorVersion", "NtMinorVersion")
    )
    build = read_build(memory, symbols.address)
    return (major, minor, build) if major and minor is not None and build else None


def read_up_time(memory: Memory, symbols: KernelSymbols) -> int | None:
    """Return how long the machine had run, in 100 ns units (_KUSER_SHARED_DATA.InterruptTime); None if unknown."""
    address = SHARED_USER_DATA[memory.pointer_size]
    low, high = (
        read_member(memory, symbols, "_KUSER_SHARED_DATA", f"InterruptTime.{part}", address)
        for part in ("LowPart", "High1Time")
    )
    return ((high << 32) + (low & 0xFFFFFFFF) or None) if low is not None and high is not None else None


_XP_FLAG_BITS = 3  # XP keeps NestedFaultCount and ApcNeeded in the low bits of _ETHREAD.CreateTime (public PDB)

_MARGIN = 10_000_000
"""One second in units of 100 ns: longer than a thread's creation takes from its CID entry to its list entry."""


def create_time_shift(symbols: KernelSymbols) -> int:
    """Return by how many bits _ETHREAD.CreateTime is shifted left from a FILETIME: 3 on XP, else 0."""
    return _XP_FLAG_BITS if symbols.member("_ETHREAD", "NestedFaultCount") is not None else 0


class SystemTime:
    """KUSER_SHARED_DATA.SystemTime; `value` is a FILETIME (100 ns units), None where it cannot be read."""

    def __init__(self, memory: Memory, symbols: KernelSymbols) -> None:
        address = SHARED_USER_DATA[memory.pointer_size]
        low, high = (
            read_member(memory, symbols, "_KUSER_SHARED_DATA", f"SystemTime.{part}", address)
            for part in ("LowPart", "High1Time")
        )
        self.value = (high << 32) + (low & 0xFFFFFFFF) if low is not None and high else None
        self._shift = create_time_shift(symbols)

    def is_after(self, create_time: int | None) -> bool | None:
        """Return whether an _ETHREAD.CreateTime is later than one second before the SystemTime in the image.

        Acquisition of a running machine takes minutes. A thread created after KUSER_SHARED_DATA was copied is in some
        parts of the image and missing from others.
        """
        if self.value is None or not create_time:
            return None
        return create_time >> self._shift > self.value - _MARGIN
