"""Machine code of a scene, put together from bytes and what they refer to: import slots and other addresses."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an import's address lies, as an instruction refers to it: absolute on x86, relative to its end on x64."""

    function: str


@dataclass(frozen=True, slots=True)
class Relative:
    """The distance from behind these four bytes to an address, as a direct call or jump has it."""

    address: int | str


Code = bytes | tuple[bytes | Slot | Relative, ...]
"""Bytes as they are, or parts that follow one another; references are four bytes long."""


def assemble(
    code: Code, at: int, *, is_64bit: bool, slots: Mapping[str, int], resolve: Callable[[int | str], int]
) -> bytes:
    """Give the bytes of code that lies at a virtual address.

    Args:
        code: what to put together.
        at: where it will lie.
        is_64bit: whether it is x64 code.
        slots: virtual addresses of import slots by the name of the function.
        resolve: turns a scene's address into a number.
    """
    if isinstance(code, bytes):
        return code
    data = bytearray()
    for part in code:
        if isinstance(part, bytes):
            data += part
        elif isinstance(part, Slot) and not is_64bit:
            data += struct.pack("<I", slots[part.function])
        else:
            target = slots[part.function] if isinstance(part, Slot) else resolve(part.address)
            data += struct.pack("<I", (target - (at + len(data) + 4)) & 0xFFFFFFFF)
    return bytes(data)
