"""Decodes the epilogues of x64 functions."""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 64
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
        code: up to BYTES bytes from the instruction pointer.
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
