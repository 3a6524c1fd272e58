"""The registers from which a stack walk starts or goes on: CONTEXT records, switch frames, x64 trap frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from struct import Struct, unpack_from

from ..formats.layout import MemberLookup
from . import StackKind, StackView

STACK_POINTER, FRAME_POINTER = 4, 5
"""Numbers of RSP and RBP (ESP and EBP) as instructions encode them (Intel SDM volume 2, table 3-1)."""

# CONTEXT (winnt.h) by size of a pointer: the ContextFlags that mean that the control registers are present; offset of
# ContextFlags.
_CONTROL = {4: 0x10001, 8: 0x100001}
_FLAGS = {4: 0x0, 8: 0x30}
CONTEXT_BYTES = {4: 0xCC, 8: 0x100}
"""The size of the part of a CONTEXT that has all registers read here, by size of a pointer."""
CONTEXT_IP = {4: 0xB8, 8: 0xF8}
"""Offset of Eip and Rip."""
_EDI_TO_EIP = Struct("<8I")  # Edi, Esi, Ebx, Edx, Ecx, Eax, Ebp, Eip from 0x9C; Esp is behind SegCs and EFlags
_ESP = 0xC4
_RAX_TO_RIP = Struct("<17Q")  # Rax ... R15 from 0x78 in the order of their numbers, then Rip

# KSWITCH_FRAME, which no PDB has, by size of a pointer: its size, offset of the return address, offset of the frame
# pointer. x86: ExceptionList, Eflags (or ApcBypassDisable), RetAddr (WRK and ReactOS, ke/i386;
# sdk/include/ndk/i386/ketypes.h), then EBP, EDI, ESI, EBX, which KiSwapContext pushed (WRK, ke/i386/ctxswap.asm).
# x64: six words of home space and ApcBypass, then Rbp and the return address (WRK, ke/amd64/ctxswap.asm: SwapContext
# pushes rbp and allocates the rest).
_SWITCH_FRAMES = {4: (0xC, 0x8, 0xC), 8: (0x40, 0x38, 0x30)}
SWITCH_FRAME_BYTES = {4: 0x10, 8: 0x40}
"""How many bytes `registers_from_switch_frame` needs, by size of a pointer."""


@dataclass(frozen=True, slots=True)
class Registers:
    """The instruction pointer, and the general registers by their number; None is an unknown value."""

    ip: int
    general: tuple[int | None, ...]

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self.general[STACK_POINTER] or 0

    @property
    def bp(self) -> int | None:
        """EBP or RBP."""
        return self.general[FRAME_POINTER]

    def with_ip_sp(self, ip: int, sp: int) -> Registers:
        """Return a copy with another instruction pointer and stack pointer."""
        return replace(self, ip=ip).with_register(STACK_POINTER, sp)

    def with_register(self, number: int, value: int | None) -> Registers:
        """Return a copy with another value in one general register."""
        return replace(self, general=(*self.general[:number], value, *self.general[number + 1 :]))


@dataclass(frozen=True, slots=True)
class ExceptionRegisters:
    """The registers at an exception, as a CONTEXT or trap frame has them, and which one it is.

    `top` is the highest stack pointer that the code which handled the exception may have had; `found_at` is the address
    of the saved instruction pointer, `source` says what the record is and what names it.
    """

    registers: Registers
    top: int
    found_at: int
    source: str


def partial_registers(ip: int, sp: int, bp: int | None, pointer_size: int) -> Registers:
    """Return registers of which only the given ones are known."""
    unknown: tuple[int | None, ...] = (None,) * (16 if pointer_size == 8 else 8)
    return Registers(ip, unknown).with_register(STACK_POINTER, sp).with_register(FRAME_POINTER, bp)


def registers_from_context(record: bytes, pointer_size: int) -> Registers | None:
    """Decode a CONTEXT record; None where it is too short or its flags lack the control registers."""
    if len(record) < CONTEXT_BYTES[pointer_size]:
        return None
    (flags,) = unpack_from("<I", record, _FLAGS[pointer_size])
    if flags & _CONTROL[pointer_size] != _CONTROL[pointer_size]:
        return None
    if pointer_size == 8:
        *general, rip = _RAX_TO_RIP.unpack_from(record, 0x78)
        return Registers(rip, tuple(general))
    edi, esi, ebx, edx, ecx, eax, ebp, eip = _EDI_TO_EIP.unpack_from(record, 0x9C)
    (esp,) = unpack_from("<I", record, _ESP)
    return Registers(eip, (eax, ecx, edx, ebx, esp, ebp, esi, edi))


def registers_from_switch_frame(data: bytes, address: int, pointer_size: int) -> Registers:
    """Decode the switch frame of a thread that is not running.

    Args:
        data: at least SWITCH_FRAME_BYTES at `address`.
        address: _KTHREAD.KernelStack.
        pointer_size: 4 or 8.
    """
    size, return_address, frame_pointer = _SWITCH_FRAMES[pointer_size]

    def word(offset: int) -> int:
        return int.from_bytes(data[offset : offset + pointer_size], "little")

    return partial_registers(word(return_address), address + size, word(frame_pointer), pointer_size)


@dataclass(frozen=True, slots=True)
class TrapFrame:
    """A trap frame's address, the registers that it saved, and whether they are of user mode.

    `found_at` is the address of its Eip or Rip. `called` is whether the kernel itself called a system service, as its
    Zw routines do on x86; then nothing was interrupted.
    """

    address: int
    ip: int
    sp: int
    bp: int
    found_at: int
    user: bool
    called: bool = False


# Selectors of x64 (KGDT64_R0_CODE, KGDT64_R3_CMCODE and KGDT64_R3_CODE with ring 3; KGDT64_R0_DATA, KGDT64_R3_DATA:
# ReactOS, sdk/include/ndk/amd64/ketypes.h). The processor leaves SS null when it comes from user mode (Intel SDM
# volume 3, 6.14.2).
_KERNEL_CODE, _USER_CODE = 0x10, (0x23, 0x33)
_KERNEL_STACK, _USER_STACK = (0, 0x18), (0x2B,)
# Of EFLAGS bit 1 is always set, bits 3, 5, 15 and 22 to 31 never (Intel SDM volume 1, 3.4.3).
_FLAGS_SET, _FLAGS_CLEAR = 0x2, 0xFFC08028
# The processor aligns RSP to 16 bytes before it pushes SS; the kernel's own calls of system services have up to two
# words above (WRK, ke/amd64/services.asm).
_ABOVE = 0x20

_MEMBERS = ("Rip", "SegCs", "EFlags", "Rsp", "SegSs", "Rbp")


class TrapFrames64:
    """Recognizes x64 trap frames by the offsets of their members: no mark shows them, but what the processor pushes."""

    def __init__(self, offsets: Mapping[str, int], size: int) -> None:
        self._offsets = offsets
        self._size = size

    @classmethod
    def from_symbols(cls, member: MemberLookup, size: int | None) -> TrapFrames64 | None:
        """Look up the offsets in a symbol table; None where it lacks one."""
        members = {name: member("_KTRAP_FRAME", name) for name in _MEMBERS}
        offsets = {name: found.offset for name, found in members.items() if found is not None}
        return cls(offsets, size) if size and len(offsets) == len(members) else None

    @property
    def ip_offset(self) -> int:
        """The offset of Rip."""
        return self._offsets["Rip"]

    def read(self, stack: StackView, address: int) -> TrapFrame | None:
        """Read the trap frame at an address; None where what lies there is none."""
        words = [stack.word(address + self._offsets[name]) for name in _MEMBERS]
        ip, cs, flags, sp, ss, bp = words
        if ip is None or cs is None or flags is None or sp is None or ss is None or bp is None:
            return None
        cs, flags, ss = cs & 0xFFFF, flags & 0xFFFFFFFF, ss & 0xFFFF
        if not flags & _FLAGS_SET or flags & _FLAGS_CLEAR:
            return None
        user = cs in _USER_CODE
        if user:
            valid = ss in _USER_STACK
        else:
            valid = cs == _KERNEL_CODE and ss in _KERNEL_STACK and self._is_above(stack, address, sp)
        return TrapFrame(address, ip, sp, bp, address + self._offsets["Rip"], user) if valid else None

    def _is_above(self, stack: StackView, address: int, sp: int) -> bool:
        """Return whether a stack pointer is where the processor was when it made a trap frame at an address."""
        if 0 <= sp - address - self._size < _ABOVE:
            return True
        # On a stack of the TSS (IST) it comes from another one.
        return stack.kind not in (StackKind.THREAD, StackKind.EXPANDED) and stack.is_on_other(sp)


def came_from_kernel(stack: StackView, ip_at: int) -> bool:
    """Return whether the processor pushed a kernel-mode code selector above the instruction pointer at an address."""
    selector = stack.word(ip_at + 8)
    return selector is not None and selector & 0xFFFF == _KERNEL_CODE
