"""Walks the kernel stacks of threads: finds the saved registers, unwinds from them, and names the frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .. import windows
from ..formats.crash_header import CrashHeader
from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Thread, View
from ..unwind.frame import Frame, How, Stack
from ..unwind.registers import (
    SWITCH_FRAME_BYTES,
    Registers,
    partial_registers,
    registers_from_context,
    registers_from_switch_frame,
)
from ..unwind.scan import FRAMES_BOUND, FROM_USER, CodeView, Scanner, StackView, Walked
from ..unwind.x64 import walk_x64
from ..unwind.x86 import TrapFrames, walk_x86
from .frame_names import FrameNames, ModuleCode

# KCALLOUT_FRAME, which no PDB has; _KTHREAD.CallbackStack points to it (ReactOS, sdk/include/ndk/i386/ketypes.h and
# KiCallUserMode in ntoskrnl/ke/i386/usercall_asm.S, which pushes it): InitialStack, TrapFrame, CallbackStack, EDI, ESI,
# EBX, EBP, the return address.
_INITIAL_STACK, _TRAP_FRAME, _CALLBACK_STACK, _EBP, _RETURN_ADDRESS = 0x0, 0x4, 0x8, 0x18, 0x1C


@dataclass(frozen=True, slots=True)
class Callout:
    """The caller of KiCallUserMode: instruction pointer, its address on the stack, EBP.

    `trap_frame` is the previous _KTHREAD.TrapFrame, `previous` the callout frame of the enclosing call, 0 for none.
    """

    ip: int
    found_at: int
    bp: int
    trap_frame: int
    previous: int


def read_callout(stack: StackView, address: int) -> Callout | None:
    """Read the KCALLOUT_FRAME at _KTHREAD.CallbackStack; None if it is not one (in Windows 7 it may be a depth)."""
    initial, previous = stack.word(address + _INITIAL_STACK), stack.word(address + _CALLBACK_STACK)
    trap_frame, bp = stack.word(address + _TRAP_FRAME), stack.word(address + _EBP)
    ip = stack.word(address + _RETURN_ADDRESS)
    if initial is None or previous is None or trap_frame is None or bp is None or ip is None:
        return None
    # The saved addresses are of the same stack and farther out.
    if not address < initial <= stack.base or (previous and not address < previous < stack.base):
        return None
    return Callout(ip, address + _RETURN_ADDRESS, bp, trap_frame, previous)


# The member of _KTRAP_FRAME in which a system service saves the previous _KTHREAD.TrapFrame, by size of a pointer:
# ReactOS, KiSystemServiceHandler (ntoskrnl/ke/i386/traphdlr.c and ke/amd64/traphandler.c). There is a previous one
# because the kernel calls system services too.
_PREVIOUS = {4: "Edx", 8: "TrapFrame"}
_MODE_MASK = 1  # of SegCs: a selector of ring 3

NESTED_BOUND = 16
"""How many nested system services are followed to find the one that user mode called."""


class UserModeEntries:
    """Finds a thread's entries from user mode (trap frames), and its calls of user mode (callout frames)."""

    def __init__(self, kernel: Kernel, code: CodeView) -> None:
        memory, symbols = kernel.memory, kernel.symbols
        self._memory, self._symbols = memory, symbols
        self._code = code
        self.traps: TrapFrames | None = None
        if memory.pointer_size == 4:
            self.traps = TrapFrames.from_symbols(symbols.member, symbols.address("KiSystemService"))

    def latest(self, thread: Thread, stack: StackView) -> int | None:
        """Return the address of the trap frame of the thread's latest entry from user mode; None if there is none."""
        return self._from_user(self._member("_ETHREAD", "Tcb.TrapFrame", thread.address), stack)

    def latest_callout(self, thread: Thread) -> int | None:
        """Return the virtual address of the latest KCALLOUT_FRAME.

        None on x64, and where the kernel has no CallbackStack (Windows 8 and later).
        """
        return self._member("_ETHREAD", "Tcb.CallbackStack", thread.address) if self.traps is not None else None

    def before_callout(self, callout: int, stack: StackView) -> tuple[Callout, StackView] | None:
        """Return the caller that a callout frame saved, and the stack with the previous entry from user mode.

        None if the callout frame is invalid.
        """
        found = read_callout(stack, callout)
        if found is None or not self._code.is_code(found.ip) or self._code.call_before(found.ip).follows is False:
            return None
        return found, stack.with_entry(self._from_user(found.trap_frame, stack))

    def _from_user(self, frame: int | None, stack: StackView) -> int | None:
        for _ in range(NESTED_BOUND):
            if not frame or not stack.holds(frame):
                break
            selector = self._member("_KTRAP_FRAME", "SegCs", frame)
            if selector is None or selector & _MODE_MASK:
                return None if selector is None else frame
            frame = self._member("_KTRAP_FRAME", _PREVIOUS[stack.pointer_size], frame)
        return None

    def _member(self, structure: str, path: str, address: int) -> int | None:
        return read_member(self._memory, self._symbols, structure, path, address)


_CONTEXT_BYTES = {4: 0x2CC, 8: 0x4D0}  # sizeof(CONTEXT), winnt.h

_PROCESSORS = 2048  # as many as Windows 11 runs on


class Stacks:
    """Walks the stacks of threads.

    Args:
        kernel: the image's kernel.
        header: the crash dump's header; None where the image is not a crash dump.
        stopped: whether a bugcheck stopped the machine; then the processors saved their contexts.
    """

    def __init__(self, kernel: Kernel, header: CrashHeader | None, *, stopped: bool) -> None:
        self._memory, self._symbols = kernel.memory, kernel.symbols
        self._header = header
        self._stopped = stopped
        self._code = ModuleCode(kernel)
        self._entries = UserModeEntries(kernel, self._code)
        self._names = FrameNames(kernel.drivers, self._code)

    def walk(self, thread: Thread) -> Stack:
        """Return the frames of a thread's stack, or the reason why there are none."""
        limit, base = thread.members.stack_limit, thread.members.stack_base
        size = self._memory.pointer_size
        if limit is None or base is None:
            return _no_frames("its limits cannot be read")
        if not 0 < limit < base <= limit + windows.STACK_BOUND or (limit | base) % size:
            return _no_frames(f"none, StackLimit is {limit:#x} and StackBase {base:#x}")
        data, holes = self._memory.read_sparse(limit, base - limit)
        if sum(end - start for start, end in holes) == len(data):
            resident = read_member(self._memory, self._symbols, "_ETHREAD", "Tcb.KernelStackResident", thread.address)
            return _no_frames("not in the image" + ("" if resident is None else f" (KernelStackResident {resident})"))
        stack = StackView(limit, data, holes, size)
        stack = stack.with_entry(self._entries.latest(thread, stack))
        for registers, start, exact in self._saved_registers(thread, stack):
            if stack.holds(registers.sp) and self._code.is_code(registers.ip):
                return self._name_frames(self._walk_all(thread, registers, stack, exact=exact), start, exact=exact)
        return self._search(thread, stack)

    def _saved_registers(self, thread: Thread, stack: StackView) -> Iterator[tuple[Registers, str, bool]]:
        """Yield candidates for the thread's registers: registers, where they were saved, whether the ip is exact."""
        size = self._memory.pointer_size
        if not _is_running(thread):
            address = thread.members.kernel_stack or 0
            data = self._memory.read(address, SWITCH_FRAME_BYTES[size]) if stack.holds(address) else None
            registers = None if data is None else registers_from_switch_frame(data, address, size)
            # If the switch frame has another form, the address read here usually does not follow a call.
            if registers is not None and self._code.call_before(registers.ip).follows is not False:
                yield registers, f"the switch frame at KernelStack {address:#x}", False
            return
        if self._header is not None and self._header.pointer_size == size:
            registers = registers_from_context(self._header.context_record, size)
            if registers is not None:
                yield registers, "the context in the dump's header", self._exact(registers)
        context = self._processor_context(thread) if self._stopped else None
        data = None if context is None else self._memory.read(context, _CONTEXT_BYTES[size])
        registers = None if data is None else registers_from_context(data, size)
        if registers is not None:
            where = f"the context of processor {thread.processor} in its KPRCB"
            yield registers, where, self._exact(registers)

    def _exact(self, registers: Registers) -> bool:
        """Return whether a context's instruction pointer is the next instruction and not a return address.

        On x86 a bugcheck calls RtlCaptureContext, which saves the return address of its caller (ReactOS,
        sdk/lib/rtl/i386/except_asm.s).
        """
        return self._memory.pointer_size == 8 or not self._code.call_before(registers.ip).follows

    def _processor_context(self, thread: Thread) -> int | None:
        """Return the virtual address of _KPRCB.ProcessorState.ContextFrame of the processor that runs a thread."""
        array = self._symbols.address("KiProcessorBlock")
        number = thread.processor
        member = self._symbols.member("_KPRCB", "ProcessorState.ContextFrame.ContextFlags")
        flags = self._symbols.member("_CONTEXT", "ContextFlags")
        if array is None or number is None or not 0 <= number < _PROCESSORS or member is None or flags is None:
            return None
        prcb = self._memory.pointer(array + number * self._memory.pointer_size)
        return prcb + member.offset - flags.offset if prcb else None

    def _walk_all(self, thread: Thread, registers: Registers, stack: StackView, *, exact: bool) -> Walked:
        """Walk from registers to the entry from user mode, and on from each callout before that."""
        walked = self._walk(registers, stack, exact=exact)
        frames, ending = walked.frames, walked.ending
        callout = self._entries.latest_callout(thread)
        while callout and (ending == FROM_USER or (stack.entry is not None and ending == stack.searched)):
            caller = self._entries.before_callout(callout, stack)
            if caller is None or len(frames) >= FRAMES_BOUND:
                break
            found, stack = caller
            walked = self._walk(partial_registers(found.ip, found.found_at + 4, found.bp, 4), stack, exact=False)
            first, *rest = walked.frames
            frames += (replace(first, how=How.CALLOUT, found_at=found.found_at, follows_call=True), *rest)
            ending, callout = walked.ending, found.previous
        return Walked(frames[:FRAMES_BOUND], ending)

    def _walk(self, registers: Registers, stack: StackView, *, exact: bool) -> Walked:
        if stack.pointer_size == 8:
            return walk_x64(registers, stack, self._code, self._code.unwind_table, exact=exact)
        return walk_x86(registers, stack, self._code, self._entries.traps, exact=exact)

    def _search(self, thread: Thread, stack: StackView) -> Stack:
        """Search a stack for return addresses.

        The search starts at KernelStack if the thread does not run and KernelStack lies on the stack, else at
        StackLimit: KernelStack of a running thread is its stack pointer of the last wait.
        """
        kernel_stack = 0 if _is_running(thread) else thread.members.kernel_stack or 0
        at = kernel_stack if stack.holds(kernel_stack) else stack.limit
        where = f"KernelStack {at:#x}" if at == kernel_stack else f"StackLimit {at:#x}"
        start = f"a search from {where}, since the thread has no usable saved registers"
        found = Scanner(stack, self._code).next_frames(0, at)
        if not found:
            return Stack((), start, f"no return address from {where} on")
        last = found[-1]
        size = stack.pointer_size
        registers = partial_registers(last.ip, (last.found_at or at) + size, last.address if size == 4 else None, size)
        walked = self._walk_all(thread, registers, stack, exact=False)
        frames = (*found[:-1], replace(last, arguments=walked.frames[0].arguments), *walked.frames[1:])
        return self._name_frames(Walked(frames, walked.ending), start, exact=False)

    def _name_frames(self, walked: Walked, start: str, *, exact: bool) -> Stack:
        following = (*(found.ip for found in walked.frames[1:]), None)
        frames = tuple(
            Frame(
                self._names.name(found.ip, exact=found.how is How.INTERRUPTED or (exact and found is walked.frames[0])),
                found.how,
                found.address,
                found.found_at,
                return_address,
                found.arguments,
                found.follows_call,
            )
            for found, return_address in zip(walked.frames, following, strict=True)
        )
        return Stack(frames, start, walked.ending)


def _is_running(thread: Thread) -> bool:
    """Tell whether the thread ran when the image was made, so that KernelStack and what lies there are stale."""
    return thread.members.state == windows.RUNNING or thread.processor is not None or View.DUMP in thread.views


def _no_frames(why: str) -> Stack:
    return Stack((), "", why)
