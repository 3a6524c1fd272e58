"""KTRAP_FRAME of x86: what an interrupt, an exception or a system service found in the registers when it began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..layout import MemberLookup
from .surroundings import StackView

# What DbgArgMark holds, so that debuggers know the frame, whose DbgEbp and DbgEip are a link of EBP's chain: ReactOS,
# ntoskrnl/include/internal/i386/trap_x.h (KiFillTrapFrameDebug).
_MARK = 0xBADB0D00
# A frame from user mode has a selector of ring 3 in SegCs (same file, KiUserTrap) or the V86 flag (Intel SDM volume 3).
_MODE_MASK, _V86 = 1, 1 << 17
# An edited frame has these bits of SegCs clear and its stack pointer in TempEsp (ntoskrnl/ke/i386/traphdlr.c).
_FRAME_EDITED = 0xFFF8
_MEMBERS = ("DbgEbp", "DbgEip", "DbgArgMark", "Ebp", "Eip", "SegCs", "EFlags", "HardwareEsp", "TempEsp")


@dataclass(frozen=True, slots=True)
class TrapFrame:
    """Where it lies, the registers that it saved, and whether they were user mode's.

    `called` is whether the kernel called a system service, as its Zw routines do, and nothing was interrupted.
    """

    address: int
    ip: int
    sp: int
    bp: int
    found_at: int
    user: bool
    called: bool = False


class TrapFrames:
    """Reads trap frames off a stack by the offsets of their members; `service` is the address of KiSystemService."""

    def __init__(self, offsets: Mapping[str, int], service: int | None = None) -> None:
        self._offsets = offsets
        self.service = service

    @classmethod
    def of(cls, member: MemberLookup, service: int | None) -> TrapFrames | None:
        """Take the offsets from a symbol table, None where it lacks any."""
        members = {name: member("_KTRAP_FRAME", name) for name in _MEMBERS}
        offsets = {name: found.offset for name, found in members.items() if found is not None}
        return cls(offsets, service) if len(offsets) == len(members) else None

    def at(self, stack: StackView, address: int) -> TrapFrame | None:
        """Read the trap frame at an address, None where there is none that bears the mark."""
        if self._word(stack, address, "DbgArgMark") != _MARK:
            return None
        ip, bp = self._word(stack, address, "Eip"), self._word(stack, address, "Ebp")
        selector, flags = self._word(stack, address, "SegCs"), self._word(stack, address, "EFlags")
        if ip is None or bp is None or selector is None or flags is None:
            return None
        user = bool(selector & _MODE_MASK or flags & _V86)
        # Within one ring the processor pushes no stack pointer: what was interrupted had it right behind EFlags.
        sp: int | None = address + self._offsets["HardwareEsp"]
        if not selector & _FRAME_EDITED and not user:
            sp = self._word(stack, address, "TempEsp")
        return None if sp is None else TrapFrame(address, ip, sp, bp, address + self._offsets["Eip"], user)

    def within(self, stack: StackView, start: int, end: int) -> Iterator[TrapFrame]:
        """Yield what lies in a range and cannot be taken for anything else: its own debug members repeat it."""
        mark = self._offsets["DbgArgMark"]
        for place in stack.places(_MARK, start + mark, end):
            frame = self.at(stack, place - mark)
            if frame is not None and not frame.user:
                repeated = self._word(stack, frame.address, "DbgEip"), self._word(stack, frame.address, "DbgEbp")
                if repeated == (frame.ip, frame.bp):
                    yield frame

    def _word(self, stack: StackView, address: int, name: str) -> int | None:
        return stack.word(address + self._offsets[name])
