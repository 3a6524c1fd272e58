"""RUNTIME_FUNCTION and UNWIND_INFO of x64 images, decoded from bytes.

Source: Microsoft, "x64 exception handling"; version 2 and its epilogue codes as the .NET runtime's unwinder reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from ..drivers.pe_header import ReadRva

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


# Slots of two bytes that an operation takes; ALLOC_LARGE has another one where its info is 1.
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
    """A function's relative virtual addresses [begin, end) and that of its unwind data."""

    begin: int
    end: int
    unwind_data: int


@dataclass(frozen=True, slots=True)
class UnwindCode:
    """What one instruction of a prologue did; `operand` in bytes: what was allocated, or where a register was saved.

    `offset` is that of the end of the instruction, from the beginning of the function.
    """

    offset: int
    operation: Operation
    info: int
    operand: int = 0


@dataclass(frozen=True, slots=True)
class UnwindInfo:
    """A function's unwind data; `frame_register` 0 is none, `frame_offset` is in bytes, `chained` where it goes on."""

    prolog_size: int
    frame_register: int
    frame_offset: int
    codes: tuple[UnwindCode, ...]
    chained: RuntimeFunction | None = None


def read_unwind_info(read: ReadRva, rva: int) -> UnwindInfo | None:
    """Read the unwind data at a relative virtual address; None where it cannot be read or is none."""
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
    """Decode an array of UNWIND_CODE, None where an operation is unknown or its operand is cut off."""
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
