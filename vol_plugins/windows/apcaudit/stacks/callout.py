"""KCALLOUT_FRAME of x86: how the kernel stack goes on beyond a call of user mode, as win32k makes them."""

from __future__ import annotations

from dataclasses import dataclass

from .surroundings import StackView

# KCALLOUT_FRAME, which no PDB has; _KTHREAD.CallbackStack points to it (ReactOS, sdk/include/ndk/i386/ketypes.h and
# KiCallUserMode in ntoskrnl/ke/i386/usercall_asm.S, which pushes it): InitialStack, TrapFrame, CallbackStack, EDI, ESI,
# EBX, EBP, the return address.
_INITIAL_STACK, _TRAP_FRAME, _CALLBACK_STACK, _EBP, _RETURN_ADDRESS = 0x0, 0x4, 0x8, 0x18, 0x1C


@dataclass(frozen=True, slots=True)
class Callout:
    """The caller of KiCallUserMode: instruction pointer, where on the stack that was, EBP.

    `trap_frame` is what _KTHREAD.TrapFrame was before, `previous` the frame of the call around this one, 0 for none.
    """

    ip: int
    found_at: int
    bp: int
    trap_frame: int
    previous: int


def read_callout(stack: StackView, address: int) -> Callout | None:
    """Read the frame that _KTHREAD.CallbackStack points to, None where it is none: Windows 7 has a depth there too."""
    initial, previous = stack.word(address + _INITIAL_STACK), stack.word(address + _CALLBACK_STACK)
    trap_frame, bp = stack.word(address + _TRAP_FRAME), stack.word(address + _EBP)
    ip = stack.word(address + _RETURN_ADDRESS)
    if initial is None or previous is None or trap_frame is None or bp is None or ip is None:
        return None
    # All of it was on this stack before, and so farther out.
    if not address < initial <= stack.base or (previous and not address < previous < stack.base):
        return None
    return Callout(ip, address + _RETURN_ADDRESS, bp, trap_frame, previous)
