"""The name of an executive object, out of the optional headers before it."""

from __future__ import annotations

from .memory import Memory
from .structures import read_member, read_unicode_string
from .symbols import KernelSymbols

# InfoMask of an _OBJECT_HEADER since 7: which optional headers lie before it, the lowest bit next to it
# (nt!ObpInfoMaskToOffset; codemachine.com, "Windows Object Headers").
_CREATOR_INFO, _NAME_INFO = 1, 2


def object_name(memory: Memory, symbols: KernelSymbols, body: int) -> str | None:
    """Read an executive object's name, None when it has none or its headers do not say.

    Args:
        memory: where it is read.
        symbols: the kernel's.
        body: virtual address of the object itself, behind its _OBJECT_HEADER.
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
        # Before 7 the header gives the distance itself.
        distance = read_member(memory, symbols, "_OBJECT_HEADER", "NameInfoOffset", header) or 0
    if not distance:
        return None
    return read_unicode_string(memory, symbols, "_OBJECT_HEADER_NAME_INFO", "Name", header - distance)
