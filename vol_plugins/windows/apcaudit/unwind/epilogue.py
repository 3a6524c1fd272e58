"""How x64 functions leave: decodes epilogues, and finds by the code behind a return address which one follows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .registers import FRAME_POINTER

EPILOGUE_BYTES = 64
"""How many bytes of code are read for an epilogue: stack adjustment, pops of all registers, return."""

_POP, _POP_EXTENDED = range(0x58, 0x60), 0x41
_RETURNS = (b"\xc3", b"\xf3\xc3", b"\xc2")
_TAIL_JUMPS = (b"\xff\x25", b"\x48\xff\x25", b"\x48\xff\xe0")
_DIRECT_JUMP = b"\xe9"


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The effect of the rest of an epilogue on the stack.

    RSP is set to the register `base` (None: RSP itself) plus `adjustment` bytes; then the registers with the numbers
    `pops` are popped.
    """

    base: int | None
    adjustment: int
    pops: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many bytes are between the stack pointer, or the register `base`, and the return address."""
        return self.adjustment + 8 * len(self.pops)


def find_epilogue(code: bytes, frame_register: int, *, direct_jumps: bool = False) -> Epilogue | None:
    """Decode the code at an instruction pointer if it is the rest of an epilogue, else return None.

    Args:
        code: up to EPILOGUE_BYTES bytes from the instruction pointer.
        frame_register: the number of the function's frame register by its unwind data; 0 is none.
        direct_jumps: whether a direct jump behind the rest may end the function; it may as well stay in it.
    """
    epilogue, length = decode_pops(code, frame_register)
    ends = (*_RETURNS, *_TAIL_JUMPS, _DIRECT_JUMP) if direct_jumps else (*_RETURNS, *_TAIL_JUMPS)
    return epilogue if code.startswith(ends, length) else None


def decode_pops(code: bytes, frame_register: int) -> tuple[Epilogue, int]:
    """Decode a stack adjustment and pops, without what ends an epilogue; also return their length in bytes."""
    base, adjustment, at = _adjustment(code, frame_register)
    pops = []
    while at < len(code):
        if code[at] in _POP:
            pops.append(code[at] - _POP.start)
            at += 1
        elif code[at] == _POP_EXTENDED and code[at + 1 : at + 2] and code[at + 1] in _POP:
            pops.append(8 + code[at + 1] - _POP.start)
            at += 2
        else:
            break
    return Epilogue(base, adjustment, tuple(pops)), at


def _adjustment(code: bytes, frame_register: int) -> tuple[int | None, int, int]:
    """Decode `add rsp, n` or `lea rsp, [frame register + n]`: base register, n, length of the instruction."""
    if code.startswith(b"\x48\x83\xc4"):
        return None, _signed(code[3:4]), 4
    if code.startswith(b"\x48\x81\xc4"):
        return None, _signed(code[3:7]), 7
    if frame_register and len(code) > 2 and code[0] == 0x48 + (frame_register >> 3) and code[1] == 0x8D:
        mode, target, source = code[2] >> 6, code[2] >> 3 & 7, code[2] & 7
        # R12 would need a SIB byte; compilers do not use it as frame register.
        if target == 4 and source == frame_register & 7 and source != 4 and mode in (1, 2):
            length = 1 if mode == 1 else 4
            return frame_register, _signed(code[3 : 3 + length]), 3 + length
    return None, 0, 0


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


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
        piece = code[rest : rest + EPILOGUE_BYTES]
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
