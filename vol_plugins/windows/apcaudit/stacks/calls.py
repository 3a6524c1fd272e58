"""The call instruction before a return address (Intel SDM volume 2, CALL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LONGEST = 7
"""Bytes of the longest call instruction that is looked for, prefixes aside."""

_NEAR_CALL, _NEAR_CALL_LENGTH = 0xE8, 5
_GROUP_5, _INDIRECT_CALL = 0xFF, 2
_MODRM_LENGTHS = (2, 3, 4, 6, 7)
_SIB, _DISPLACEMENT_ONLY = 4, 5
_PAGE = 0x1000


@dataclass(frozen=True, slots=True)
class CallBefore:
    """Whether a call ends right before an address (None: its bytes cannot be read), and a direct call's target."""

    follows: bool | None
    target: int | None = None


def call_before(code: bytes, address: int, pointer_size: int) -> CallBefore:
    """Look for a call that ends at an address.

    Args:
        code: the bytes before the address, as many of LONGEST as can be read.
        address: the virtual address behind them.
        pointer_size: 4 or 8.
    """
    if len(code) >= _NEAR_CALL_LENGTH and code[-_NEAR_CALL_LENGTH] == _NEAR_CALL:
        distance = int.from_bytes(code[-4:], "little", signed=True)
        return CallBefore(True, (address + distance) % (1 << pointer_size * 8))
    for length in _MODRM_LENGTHS:
        if length > len(code):
            break
        start = len(code) - length
        if code[start] == _GROUP_5 and code[start + 1] >> 3 & 7 == _INDIRECT_CALL and _length(code[start:]) == length:
            return CallBefore(True)
    return CallBefore(None if len(code) < LONGEST else False)


def find_call(read: Callable[[int, int], bytes | None], address: int, pointer_size: int) -> CallBefore:
    """Look for a call that ends at an address, in what of the bytes before it can be read.

    Args:
        read: reads bytes at a virtual address, None where they cannot all be read.
        address: where the call would end.
        pointer_size: 4 or 8.
    """
    code = read(address - LONGEST, LONGEST)
    if code is None:
        # What of it can be read: of its own page, or in a minidump as many bytes as that holds.
        lengths = {min(address % _PAGE, LONGEST - 1), *range(1, LONGEST)}
        pieces = (read(address - length, length) for length in sorted(lengths - {0}, reverse=True))
        code = next((piece for piece in pieces if piece is not None), b"")
    return call_before(code, address, pointer_size)


def _length(code: bytes) -> int:
    """Return the length of an instruction FF /2: opcode, ModRM byte, and what that byte says follows."""
    mode, register = code[1] >> 6, code[1] & 7
    if mode == 3:
        return 2
    sib = register == _SIB
    if mode == 0:
        absolute = (code[2] & 7 if sib and len(code) > 2 else register) == _DISPLACEMENT_ONLY
        return 2 + sib + (4 if absolute else 0)
    return 2 + sib + (1 if mode == 1 else 4)
