"""The pool tag of an allocation, read from the header before it, and what known tags say."""

from __future__ import annotations

from dataclasses import dataclass

from ..memory import PAGE, Memory
from ..structures import read_member
from ..symbols import KernelSymbols

# Tags of allocations that hold KAPCs (pooltag.txt of the Windows Debugging Tools; DRAKVUF's poolmon table).
KNOWN_TAGS: dict[str, str] = {
    "KAPC": "an I/O hard error, and many drivers",
    "CMpa": "a registry change notification",
    "EtwA": "an ETW stack walk",
    "PsAp": "NtQueueApcThread",
    "Psap": "NtQueueApcThread",
    "PsCa": "thread creation",
    "PsEx": "thread termination",
    "Irp ": "an IRP",
    "Irps": "an IRP (small lookaside list)",
    "Irpl": "an IRP (large lookaside list)",
    "Irp+": "an IRP (driver verifier)",
}

IRP_TAGS = frozenset({"Irp ", "Irps", "Irpl", "Irp+"})

# fltmgr allocates under tags that begin with FM (pooltag.txt).
_FILTER_MANAGER = "FM"

# Set in the tag's last byte of a protected allocation, to 7 (WDK, ExAllocatePoolWithTag: PROTECTED_POOL).
_PROTECTED = 0x80


@dataclass(frozen=True, slots=True)
class PoolTag:
    """A pool tag as text, and the size in bytes of the block that carries it, its header included."""

    text: str
    block_size: int

    @property
    def meaning(self) -> str | None:
        """What allocates under the tag, None when it is not a known producer's."""
        if self.text.startswith(_FILTER_MANAGER):
            return "fltmgr"
        return KNOWN_TAGS.get(self.text)

    def __str__(self) -> str:
        return f"'{self.text}'" + (f" ({self.meaning})" if self.meaning else "")


def read_pool_tag(memory: Memory, symbols: KernelSymbols, block: int, size: int) -> PoolTag | None:
    """Read the tag of the pool block whose user part starts at a virtual address.

    None is unknown: a large allocation has no header, on pages of the segment heap (1903 and later) a header
    may be missing, and an address within a block has something else before it.

    Args:
        memory: the image.
        symbols: the kernel's symbols.
        block: where the allocation starts.
        size: bytes that the allocation holds at least.
    """
    header = symbols.size_of("_POOL_HEADER")
    if not header or (block - header) // PAGE != block // PAGE:
        return None
    at = block - header
    tag = read_member(memory, symbols, "_POOL_HEADER", "PoolTag", at)
    units = read_member(memory, symbols, "_POOL_HEADER", "BlockSize", at)
    kind = read_member(memory, symbols, "_POOL_HEADER", "PoolType", at)
    # A block's size is counted in headers, and a block never leaves its page; type 0 is a free block.
    if not tag or tag >> 32 or not units or not kind:
        return None
    length = units * header
    if length < header + size or at % PAGE + length > PAGE:
        return None
    letters = tag.to_bytes(4, "little")
    letters = letters[:3] + bytes([letters[3] & ~_PROTECTED])
    text = letters.decode("latin-1")
    return PoolTag(text, length) if letters.isascii() and text.isprintable() else None
