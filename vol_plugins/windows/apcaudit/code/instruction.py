"""Machine code to instructions, as far as calls and what registers hold are concerned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

LONGEST = 15
"""Bytes of the longest instruction (Intel SDM volume 2, 2.3.11)."""

RETPOLINE = "r10"
"""Through r10 a driver built for retpolines calls an import once the kernel has patched its code: mov r10, [slot]; call
stub (Microsoft, "Mitigating Spectre variant 2 with Retpoline on Windows"). So it counts for one instruction only."""

# Zeros would be an addition to memory that compilers never make; they mean that no code was put there.
_NO_CODE = b"\0\0"


class Flow(Enum):
    """Where control goes behind an instruction."""

    NEXT = "the following instruction"
    CALL = "a function, then the following instruction"
    JUMP = "its target"
    BRANCH = "its target or the following instruction"
    RETURN = "the caller"
    STOP = "nowhere"


@dataclass(frozen=True, slots=True)
class Fixed:
    """An address that an instruction states."""

    address: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The pointer that memory at an address holds."""

    address: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction; a register goes by one name for all its widths: `cx`, `r8`, `flags`.

    Attributes:
        target: where it calls or jumps to, the register that holds it, None where it is computed.
        writes: registers that it changes.
        sets: one of them, and what it is set to: an address, a slot's pointer or another register's value. What a
            test compares with zero is said to be in the flags.
        nonzero: where a branch goes if what was tested last is not zero.
    """

    address: int
    size: int
    flow: Flow = Flow.NEXT
    target: Fixed | Slot | str | None = None
    writes: frozenset[str] = frozenset()
    sets: tuple[str, Fixed | Slot | str] | None = None
    nonzero: int | None = None

    @property
    def end(self) -> int:
        """The address of the following instruction."""
        return self.address + self.size


class Decoder:
    """Decodes x86 or x64 code with the module `capstone`, which is handed in since it may be missing."""

    def __init__(self, capstone: Any, bits: int) -> None:
        self._x86 = capstone.x86
        self._bits = bits
        self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32)
        self._engine.detail = True

    def decode(self, address: int, code: bytes) -> Instruction | None:
        """Decode the instruction at the beginning of some bytes, None where there is none."""
        raw = None if code.startswith(_NO_CODE) else next(self._engine.disasm(code, address, 1), None)
        if raw is None:
            return None
        x86, size = self._x86, int(raw.size)
        if raw.group(x86.X86_GRP_RET) or raw.group(x86.X86_GRP_IRET):
            return Instruction(address, size, Flow.RETURN)
        # int 3 behind a call that does not return; ud2 and int 0x29 (fail fast) end the flow too.
        if raw.id in (x86.X86_INS_INT3, x86.X86_INS_HLT, x86.X86_INS_UD2) or bytes(raw.bytes) == b"\xcd\x29":
            return Instruction(address, size, Flow.STOP)
        if raw.group(x86.X86_GRP_CALL):
            return Instruction(address, size, Flow.CALL, self._target(raw))
        writes = frozenset({RETPOLINE, *(_register(raw.reg_name(each)) for each in raw.regs_access()[1])})
        if raw.group(x86.X86_GRP_JUMP) or raw.group(x86.X86_GRP_BRANCH_RELATIVE):
            target = self._target(raw)
            if raw.id in (x86.X86_INS_JMP, x86.X86_INS_LJMP):
                return Instruction(address, size, Flow.JUMP, target)
            ways = {
                x86.X86_INS_JE: address + size,
                x86.X86_INS_JNE: target.address if isinstance(target, Fixed) else None,
            }
            return Instruction(address, size, Flow.BRANCH, target, writes, nonzero=ways.get(raw.id))
        if not raw.operands or raw.group(x86.X86_GRP_INT):
            writes |= {"ax"}  # not told of all of these, xlatb say
        return Instruction(address, size, writes=writes, sets=self._sets(raw))

    def _target(self, raw: Any) -> Fixed | Slot | str | None:
        near = raw.id not in (self._x86.X86_INS_LCALL, self._x86.X86_INS_LJMP)
        return self._value(raw, raw.operands[0]) if near and raw.operands else None

    def _sets(self, raw: Any) -> tuple[str, Fixed | Slot | str] | None:
        x86 = self._x86
        if len(raw.operands) != 2 or raw.operands[0].type != x86.X86_OP_REG:
            return None
        to, source = raw.operands
        if raw.id == x86.X86_INS_TEST and source.type == x86.X86_OP_REG and source.reg == to.reg:
            return "flags", _register(raw.reg_name(to.reg))
        if raw.id not in (x86.X86_INS_MOV, x86.X86_INS_MOVABS, x86.X86_INS_LEA) or to.size * 8 != self._bits:
            return None
        value = self._value(raw, source)
        if raw.id == x86.X86_INS_LEA:
            value = Fixed(value.address) if isinstance(value, Slot) else None
        return None if value is None else (_register(raw.reg_name(to.reg)), value)

    def _value(self, raw: Any, operand: Any) -> Fixed | Slot | str | None:
        if operand.type == self._x86.X86_OP_IMM:
            return Fixed(int(operand.imm) % (1 << self._bits))
        if operand.type == self._x86.X86_OP_REG:
            return _register(raw.reg_name(operand.reg))
        memory = operand.mem
        # An address that depends on no register but RIP.
        base = self._x86.X86_REG_RIP if self._bits == 64 else self._x86.X86_REG_INVALID
        if memory.base != base or memory.index or memory.segment:
            return None
        start = raw.address + raw.size if self._bits == 64 else 0
        return Slot((start + memory.disp) % (1 << self._bits))


def _register(name: str) -> str:
    """Return one name for a register's parts: `al`, `ah`, `eax` and `rax` are `ax`."""
    if name[1:2].isdigit():
        return name.rstrip("bwd")
    name = name[1:] if name[0] in "er" and len(name) > 2 else name
    return name[:-1].ljust(2, "x") if name[-1] in "lh" else name
