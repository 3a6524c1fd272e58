"""Epilogues of x64 functions, which unwind data does not describe: they have one of few forms, known by their bytes.

Source: Microsoft, "x64 prolog and epilog".
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 64
"""How many bytes of code the longest epilogue needs: a stack adjustment, pops of all registers, a return."""

_POP, _POP_EXTENDED = range(0x58, 0x60), 0x41
_RETURNS = (b"\xc3", b"\xf3\xc3", b"\xc2")
_TAIL_JUMPS = (b"\xff\x25", b"\x48\xff\x25", b"\x48\xff\xe0")


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What the rest of an epilogue does to the stack.

    `base` is the register that the stack pointer is set from (None: itself), `adjustment` what is added to it in bytes,
    `pops` the numbers of the registers that are popped then.
    """

    base: int | None
    adjustment: int
    pops: tuple[int, ...]


def find_epilogue(code: bytes, frame_register: int) -> Epilogue | None:
    """Tell whether the code at an instruction pointer is the rest of an epilogue.

    Args:
        code: from the instruction pointer, BYTES of it or what can be read.
        frame_register: of the function's unwind data; 0 is none.
    """
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
    if code.startswith(_RETURNS, at) or code.startswith(_TAIL_JUMPS, at):
        return Epilogue(base, adjustment, tuple(pops))
    return None


def _adjustment(code: bytes, frame_register: int) -> tuple[int | None, int, int]:
    """Decode `add rsp, n` or `lea rsp, [frame register + n]`; also give its length."""
    if code.startswith(b"\x48\x83\xc4"):
        return None, _signed(code[3:4]), 4
    if code.startswith(b"\x48\x81\xc4"):
        return None, _signed(code[3:7]), 7
    if frame_register and len(code) > 2 and code[0] == 0x48 + (frame_register >> 3) and code[1] == 0x8D:
        mode, target, source = code[2] >> 6, code[2] >> 3 & 7, code[2] & 7
        # R12 would need a SIB byte and is no frame register in what compilers make.
        if target == 4 and source == frame_register & 7 and source != 4 and mode in (1, 2):
            length = 1 if mode == 1 else 4
            return frame_register, _signed(code[3 : 3 + length]), 3 + length
    return None, 0, 0


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)
