"""Finds by the code behind a return address how its function leaves: x64 frames where unwind data cannot be read.

A minidump has no unwind data, but the code that the addresses on the stack point to: some 256 bytes from each on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .epilogue import BYTES, Epilogue, decode_pops, find_epilogue
from .registers import FRAME_POINTER

CODE_BYTES = 0x100
"""How many bytes of code are searched; a minidump has as many behind each address."""

_INT3 = 0xCC
_PADDING = b"\xcc\xcc"  # what Microsoft's linker puts between functions
# What an epilogue begins with: add rsp, n (8 or 32 bits), lea rsp, [rbp+n] (8 or 32 bits).
_BEGINNINGS = (b"\x48\x83\xc4", b"\x48\x81\xc4", b"\x48\x8d\x65", b"\x48\x8d\xa5")
# Functions that save registers in the caller's frame restore them through R11: lea r11, [rsp+n] (8 or 32 bits), loads,
# mov rsp, r11, pops (Microsoft, "x64 prolog and epilog").
_LOAD_R11_8, _LOAD_R11_32, _FROM_R11 = b"\x4c\x8d\x5c\x24", b"\x4c\x8d\x9c\x24", b"\x49\x8b\xe3"
_CUT = (b"", b"\x41")  # what may be left where the code ends within pops: nothing, or the prefix of a pop
_BETWEEN = 0x40  # bytes of loads of all nonvolatile registers, and some more


@dataclass(frozen=True, slots=True)
class FunctionEnd:
    """The epilogue of a function. If it is not `whole`, the code ended before it, and it may pop more."""

    epilogue: Epilogue
    whole: bool = True


def find_function_end(code: bytes) -> FunctionEnd | None:
    """Find the first epilogue of the function that code belongs to; None where there is none in it.

    Args:
        code: that behind a return address; the function has finished its prologue there.
    """
    if not code or code[0] == _INT3:
        # The call never returns, and what follows is no code of the function.
        return None
    padding = code.find(_PADDING)
    code = code if padding < 0 else code[:padding]
    for at in range(len(code)):
        rest, adjustment = at, 0
        if code.startswith(_FROM_R11, at):
            rest, adjustment = at + len(_FROM_R11), _loaded(code[max(at - _BETWEEN, 0) : at])
        elif not code.startswith(_BEGINNINGS, at):
            continue
        piece = code[rest : rest + BYTES]
        decoded, length = decode_pops(piece, FRAME_POINTER)
        whole = find_epilogue(piece, FRAME_POINTER, direct_jumps=True) is not None
        found = replace(decoded, adjustment=decoded.adjustment + adjustment)
        plausible = found.base is not None or (found.adjustment > 0 and not found.adjustment % 8)
        if plausible and (whole or (padding < 0 and code[rest + length :] in _CUT)):
            return FunctionEnd(found, whole)
    return None


def _loaded(code: bytes) -> int:
    """Return what the last `lea r11, [rsp+n]` adds; 0 where there is none."""
    short, long = code.rfind(_LOAD_R11_8), code.rfind(_LOAD_R11_32)
    if max(short, long) < 0:
        return 0
    at, length = (short, 1) if short > long else (long, 4)
    operand = code[at + 4 : at + 4 + length]
    return int.from_bytes(operand, "little", signed=True) if len(operand) == length else 0
