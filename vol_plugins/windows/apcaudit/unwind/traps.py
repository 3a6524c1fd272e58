"""Trap frames: the registers that an interrupt or exception saved on a kernel stack; here as x64 has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..formats.layout import MemberLookup
from .frame import StackKind
from .stack_view import StackView


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
