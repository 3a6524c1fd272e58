"""The function table (.pdata) and unwind data (UNWIND_INFO) of x64 code, and where a function ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from struct import Struct

from .pe import EXCEPTION, MACHINES, Exports, Header, ReadRva, read_header

RUNTIME_FUNCTION = Struct("<III")  # BeginAddress, EndAddress, UnwindData

_CHAINED = 0x4  # UNW_FLAG_CHAININFO
_VERSIONS = (1, 2)


class Operation(IntEnum):
    """UNWIND_CODE.UnwindOp."""

    PUSH_NONVOL = 0
    ALLOC_LARGE = 1
    ALLOC_SMALL = 2
    SET_FPREG = 3
    SAVE_NONVOL = 4
    SAVE_NONVOL_FAR = 5
    EPILOG = 6
    SPARE = 7
    SAVE_XMM128 = 8
    SAVE_XMM128_FAR = 9
    PUSH_MACHFRAME = 10


# How many two-byte slots an operation occupies; ALLOC_LARGE has one more if its info is 1.
_SLOTS = {
    Operation.PUSH_NONVOL: 1,
    Operation.ALLOC_LARGE: 2,
    Operation.ALLOC_SMALL: 1,
    Operation.SET_FPREG: 1,
    Operation.SAVE_NONVOL: 2,
    Operation.SAVE_NONVOL_FAR: 3,
    Operation.EPILOG: 1,
    Operation.SPARE: 3,
    Operation.SAVE_XMM128: 2,
    Operation.SAVE_XMM128_FAR: 3,
    Operation.PUSH_MACHFRAME: 1,
}


@dataclass(frozen=True, slots=True)
class RuntimeFunction:
    """An entry of the function table: the function [begin, end) and its unwind data, as relative virtual addresses."""

    begin: int
    end: int
    unwind_data: int


@dataclass(frozen=True, slots=True)
class UnwindCode:
    """The effect of one instruction of a prologue.

    `operand` is in bytes: the size allocated, or the offset at which a register was saved. `offset` is the end of the
    instruction, in bytes from the function's begin.
    """

    offset: int
    operation: Operation
    info: int
    operand: int = 0


@dataclass(frozen=True, slots=True)
class UnwindInfo:
    """A function's unwind data; `frame_register` 0 means none, `frame_offset` is in bytes.

    `chained` is the entry whose unwind data continues this one.
    """

    prolog_size: int
    frame_register: int
    frame_offset: int
    codes: tuple[UnwindCode, ...]
    chained: RuntimeFunction | None = None


def read_unwind_info(read: ReadRva, rva: int) -> UnwindInfo | None:
    """Read the unwind data at a relative virtual address; None where it cannot be read or is not valid."""
    header = read(rva, 4)
    if header is None or header[0] & 7 not in _VERSIONS:
        return None
    flags, count = header[0] >> 3, header[2]
    padded = (count + 1) & ~1
    data = read(rva + 4, 2 * padded) if count else b""
    codes = None if data is None else parse_codes(data[: 2 * count])
    if codes is None:
        return None
    chained = None
    if flags & _CHAINED:
        entry = read(rva + 4 + 2 * padded, RUNTIME_FUNCTION.size)
        if entry is None:
            return None
        chained = RuntimeFunction(*RUNTIME_FUNCTION.unpack(entry))
    return UnwindInfo(header[1], header[3] & 0xF, (header[3] >> 4) * 16, codes, chained)


def parse_codes(data: bytes) -> tuple[UnwindCode, ...] | None:
    """Decode an array of UNWIND_CODE; None where an operation is unknown or its operand is cut off."""
    codes = []
    at = 0
    while at < len(data):
        offset, kind, info = data[at], data[at + 1] & 0xF, data[at + 1] >> 4
        if kind > Operation.PUSH_MACHFRAME:
            return None
        operation = Operation(kind)
        slots = _SLOTS[operation] + (operation is Operation.ALLOC_LARGE and info != 0)
        if at + 2 * slots > len(data):
            return None
        value = int.from_bytes(data[at + 2 : at + 2 * slots], "little")
        codes.append(UnwindCode(offset, operation, info, _operand(operation, info, value)))
        at += 2 * slots
    return tuple(codes)


def _operand(operation: Operation, info: int, value: int) -> int:
    if operation is Operation.ALLOC_SMALL:
        return 8 * info + 8
    if operation is Operation.SAVE_NONVOL or (operation is Operation.ALLOC_LARGE and not info):
        return 8 * value
    return 16 * value if operation is Operation.SAVE_XMM128 else value


_ENTRIES_BOUND = 1 << 20  # ntoskrnl of Windows 11 has some 40,000 functions

INDIRECTIONS_BOUND = 8
"""How many indirect entries are followed in a row; Windows follows one (RUNTIME_FUNCTION_INDIRECT)."""


class NoEntry(Enum):
    """Why no entry was found: a leaf function needs none (it does not change the stack), or reading failed."""

    LEAF = "a leaf function"
    UNREADABLE = "the function table cannot be read"


class FunctionTable:
    """Searches the function table of one image; reads only the entries that the binary search needs.

    Args:
        read: reads bytes of the image.
        image_size: in bytes.
        header: the image's headers; they are read where it is None.
    """

    def __init__(self, read: ReadRva, image_size: int, header: Header | None = None) -> None:
        header = header or read_header(read)
        directory = None if header is None else header.directory(EXCEPTION)
        self._read = read
        self._start, size = directory or (0, 0)
        count = min(size // RUNTIME_FUNCTION.size, _ENTRIES_BOUND)
        self._count = count if self._start > 0 and self._start + count * RUNTIME_FUNCTION.size <= image_size else 0

    def find(self, rva: int) -> RuntimeFunction | NoEntry:
        """Return the entry that tells how to unwind the code at an address of the image; indirect ones are followed."""
        entry = self.containing(rva)
        return entry if isinstance(entry, NoEntry) else self._direct(entry)

    def containing(self, rva: int) -> RuntimeFunction | NoEntry:
        """Return the entry whose range of code contains a relative virtual address, as it is in the table."""
        low, high = 0, self._count
        if not high:
            return NoEntry.UNREADABLE
        while low < high:
            middle = (low + high) // 2
            entry = self._entry(self._start + middle * RUNTIME_FUNCTION.size)
            if entry is None:
                return NoEntry.UNREADABLE
            if rva < entry.begin:
                high = middle
            elif rva >= entry.end:
                low = middle + 1
            else:
                return entry
        return NoEntry.LEAF

    def _entry(self, rva: int) -> RuntimeFunction | None:
        data = self._read(rva, RUNTIME_FUNCTION.size)
        return None if data is None else RuntimeFunction(*RUNTIME_FUNCTION.unpack(data))

    def _direct(self, entry: RuntimeFunction) -> RuntimeFunction | NoEntry:
        """Resolve an indirect entry: if bit 0 of UnwindData is set, it is the address of another entry."""
        for _ in range(INDIRECTIONS_BOUND):
            if not entry.unwind_data & 1:
                return entry
            following = self._entry(entry.unwind_data - 1)
            if following is None:
                break
            entry = following
        return NoEntry.UNREADABLE


DEFAULT_SIZE = 0x400
"""The assumed size in bytes of a function whose end is unknown; few start routines are longer."""


def function_size(read: ReadRva, header: Header | None, exports: Exports, rva: int, limit: int) -> int:
    """Return the number of bytes from an address to the end of the function that contains it.

    The end is that of the x64 function table's entry, else the nearest of: the next export, the end of the section,
    DEFAULT_SIZE.

    Args:
        read: reads bytes of the image.
        header: its headers, None where there are none.
        exports: its exports.
        rva: the relative virtual address, usually the function's first byte.
        limit: the image's size in bytes.
    """
    if header is not None and header.machine == MACHINES[64]:
        entry = FunctionTable(read, limit, header).containing(rva)
        if not isinstance(entry, NoEntry):
            return min(entry.end, limit) - rva
    ends = [limit, rva + DEFAULT_SIZE]
    section = None if header is None else header.section_at(rva)
    if section is not None:
        ends.append(section.rva + section.size)
    following = exports.next(rva)
    if following is not None:
        ends.append(following)
    return max(min(ends) - rva, 0)
