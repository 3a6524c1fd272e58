"""Machine code to instructions, by capstone: the disassembler that Volatility uses, and as optional as there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .instruction import Decode, Flow, Instruction

LONGEST = 15
"""Bytes of the longest instruction (Intel SDM volume 2, 2.3.11)."""

# Zeros would be an addition to memory that compilers never make; they mean that no code was put there.
_NO_CODE = b"\0\0"

MISSING = (
    "the code at the start addresses of suspect threads is not checked: capstone is not installed"
    " (pip install capstone)"
)

ReadCode = Callable[[int], bytes]
"""Reads up to LONGEST bytes at a virtual address; fewer where the next page cannot be read."""


def decoder(read: ReadCode, bits: int) -> Decode | None:
    """Make what decodes instructions of 32- or 64-bit code, None where capstone is not installed."""
    try:
        import capstone
        from capstone import x86
    except ImportError:
        return None
    engine: Any = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32)
    engine.detail = True

    def decode(address: int) -> Instruction | None:
        code = read(address)
        if code.startswith(_NO_CODE):
            return None
        for raw in engine.disasm(code, address, 1):
            return _instruction(raw, x86, bits)
        return None

    return decode


def _instruction(raw: Any, x86: Any, bits: int) -> Instruction:
    address, size = int(raw.address), int(raw.size)
    groups = set(raw.groups)
    if x86.X86_GRP_RET in groups or x86.X86_GRP_IRET in groups:
        return Instruction(address, size, Flow.RETURN)
    # int 3 behind a call that does not return; ud2 and int 0x29 (fail fast) end the flow too.
    if raw.id in (x86.X86_INS_INT3, x86.X86_INS_HLT, x86.X86_INS_UD2) or raw.bytes == b"\xcd\x29":
        return Instruction(address, size, Flow.STOP)
    if x86.X86_GRP_CALL in groups:
        return _transfer(raw, x86, bits, Flow.CALL)
    if x86.X86_GRP_JUMP in groups:
        return _transfer(raw, x86, bits, Flow.JUMP if raw.id == x86.X86_INS_JMP else Flow.BRANCH)
    loads = None
    if raw.id == x86.X86_INS_MOV and raw.operands[0].type == x86.X86_OP_REG and raw.operands[1].type == x86.X86_OP_MEM:
        slot = _fixed(raw, raw.operands[1], x86, bits)
        loads = None if slot is None else (str(raw.reg_name(raw.operands[0].reg)), slot)
    return Instruction(address, size, loads=loads)


def _transfer(raw: Any, x86: Any, bits: int, flow: Flow) -> Instruction:
    address, size = int(raw.address), int(raw.size)
    operand = raw.operands[0] if raw.operands else None
    if operand is None:
        return Instruction(address, size, flow)
    if operand.type == x86.X86_OP_IMM:
        return Instruction(address, size, flow, target=int(operand.imm) % (1 << bits))
    if operand.type == x86.X86_OP_REG:
        return Instruction(address, size, flow, register=str(raw.reg_name(operand.reg)))
    return Instruction(address, size, flow, slot=_fixed(raw, operand, x86, bits))


def _fixed(raw: Any, operand: Any, x86: Any, bits: int) -> int | None:
    """Return the address of a memory operand where it does not depend on registers, RIP aside."""
    memory = operand.mem
    if memory.index or memory.segment:
        return None
    if bits == 64:
        return (raw.address + raw.size + memory.disp) % (1 << 64) if memory.base == x86.X86_REG_RIP else None
    return None if memory.base else memory.disp % (1 << 32)
