"""The stacks of an image's threads: where the registers of each were saved, and the walk from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .. import facts as windows
from ..drivers.loaded import Drivers
from ..memory import Memory
from ..minidump.crash_header import CrashHeader
from ..model import Thread, View
from ..structures import read_member
from ..symbols import KernelSymbols
from .entries import Entries
from .frame import Frame, How, Stack
from .frame_names import FrameNames
from .module_code import ModuleCode
from .registers import SWITCH_FRAME_BYTES, Registers, of_context, of_switch_frame, only
from .scan import Scanner
from .surroundings import FRAMES_BOUND, FROM_USER, StackView, Walked
from .walk_x64 import walk_x64
from .walk_x86 import walk_x86

STACK_BOUND = 1 << 20
"""The largest kernel stack that is believed, in bytes; x64 gives up to 72 KiB, callouts a few of them."""

_CONTEXT_BYTES = {4: 0x2CC, 8: 0x4D0}  # sizeof(CONTEXT), winnt.h

_PROCESSORS = 2048  # as many as Windows 11 runs on


class Stacks:
    """Walks the stacks of threads.

    Args:
        memory: the image.
        symbols: the kernel's.
        drivers: names code.
        header: that of the crash dump file, None where the image is none.
        stopped: whether a bugcheck stopped the machine, so that its processors saved their contexts.
    """

    def __init__(
        self, memory: Memory, symbols: KernelSymbols, drivers: Drivers, header: CrashHeader | None, *, stopped: bool
    ) -> None:
        self._memory = memory
        self._symbols = symbols
        self._header = header
        self._stopped = stopped
        self._code = ModuleCode(memory, drivers, symbols)
        self._entries = Entries(memory, symbols, self._code)
        self._names = FrameNames(drivers, self._code)

    def of(self, thread: Thread) -> Stack:
        """Return the stack of a thread: its frames, or why there are none."""
        limit, base = thread.members.stack_limit, thread.members.stack_base
        size = self._memory.pointer_size
        if limit is None or base is None:
            return _none("its limits cannot be read")
        if not 0 < limit < base <= limit + STACK_BOUND or (limit | base) % size:
            return _none(f"none, StackLimit is {limit:#x} and StackBase {base:#x}")
        data, holes = self._memory.read_sparse(limit, base - limit)
        if sum(end - start for start, end in holes) == len(data):
            resident = read_member(self._memory, self._symbols, "_ETHREAD", "Tcb.KernelStackResident", thread.address)
            return _none("not in the image" + ("" if resident is None else f" (KernelStackResident {resident})"))
        stack = StackView(limit, data, holes, size)
        stack = stack.entered_at(self._entries.of(thread, stack))
        for registers, start, exact in self._saved(thread, stack):
            if stack.holds(registers.sp) and self._code.is_code(registers.ip):
                return self._walked(self._outwards(thread, registers, stack, exact=exact), start, exact=exact)
        return self._searched(thread, stack)

    def _saved(self, thread: Thread, stack: StackView) -> Iterator[tuple[Registers, str, bool]]:
        """Yield the registers that may be the thread's, where they were saved, and whether at an exact instruction."""
        size = self._memory.pointer_size
        running = thread.members.state == windows.RUNNING or thread.processor is not None or View.DUMP in thread.views
        if not running:
            address = thread.members.kernel_stack or 0
            data = self._memory.read(address, SWITCH_FRAME_BYTES[size]) if stack.holds(address) else None
            registers = None if data is None else of_switch_frame(data, address, size)
            # A frame of another form shows itself by a return address that is none.
            if registers is not None and self._code.call_before(registers.ip).follows is not False:
                yield registers, f"the switch frame at KernelStack {address:#x}", False
            return
        if self._header is not None and self._header.pointer_size == size:
            registers = of_context(self._header.context_record, size)
            if registers is not None:
                yield registers, "the context in the dump's header", self._exact(registers)
        context = self._processor_context(thread) if self._stopped else None
        data = None if context is None else self._memory.read(context, _CONTEXT_BYTES[size])
        registers = None if data is None else of_context(data, size)
        if registers is not None:
            where = f"the context of processor {thread.processor} in its KPRCB"
            yield registers, where, self._exact(registers)

    def _exact(self, registers: Registers) -> bool:
        """Tell whether a context is of an instruction about to run.

        RtlCaptureContext of x86, which a bugcheck calls, saves what its caller's caller goes on with (ReactOS,
        sdk/lib/rtl/i386/except_asm.s): a return address, and KeBugCheck calls what never returns.
        """
        return self._memory.pointer_size == 8 or not self._code.call_before(registers.ip).follows

    def _processor_context(self, thread: Thread) -> int | None:
        """Return the virtual address of ProcessorState.ContextFrame of the processor that a thread is on."""
        array = self._symbols.address("KiProcessorBlock")
        number = thread.processor
        member = self._symbols.member("_KPRCB", "ProcessorState.ContextFrame.ContextFlags")
        flags = self._symbols.member("_CONTEXT", "ContextFlags")
        if array is None or number is None or not 0 <= number < _PROCESSORS or member is None or flags is None:
            return None
        prcb = self._memory.pointer(array + number * self._memory.pointer_size)
        return prcb + member.offset - flags.offset if prcb else None

    def _outwards(self, thread: Thread, registers: Registers, stack: StackView, *, exact: bool) -> Walked:
        """Walk from registers, and where the thread had called user mode since, from there on."""
        walked = self._walk(registers, stack, exact=exact)
        frames, ending = walked.frames, walked.ending
        callout = self._entries.callout(thread)
        while callout and (ending == FROM_USER or (stack.entry is not None and ending == stack.searched)):
            beyond = self._entries.beyond(callout, stack)
            if beyond is None or len(frames) >= FRAMES_BOUND:
                break
            found, stack = beyond
            walked = self._walk(only(found.ip, found.found_at + 4, found.bp, 4), stack, exact=False)
            first, *rest = walked.frames
            frames += (replace(first, how=How.CALLOUT, found_at=found.found_at, follows_call=True), *rest)
            ending, callout = walked.ending, found.previous
        return Walked(frames[:FRAMES_BOUND], ending)

    def _walk(self, registers: Registers, stack: StackView, *, exact: bool) -> Walked:
        if stack.pointer_size == 8:
            return walk_x64(registers, stack, self._code, self._code.unwind_table, exact=exact)
        return walk_x86(registers, stack, self._code, self._entries.traps, exact=exact)

    def _searched(self, thread: Thread, stack: StackView) -> Stack:
        """Search a stack for which no registers were saved, from where the thread last waited if that is known."""
        kernel_stack = thread.members.kernel_stack or 0
        at = kernel_stack if stack.holds(kernel_stack) else stack.limit
        where = f"KernelStack {at:#x}" if at == kernel_stack else f"StackLimit {at:#x}"
        start = f"a search from {where}, since no registers of it were saved"
        found = Scanner(stack, self._code).next_frames(0, at)
        if not found:
            return Stack((), start, f"no return address from {where} on")
        last = found[-1]
        size = stack.pointer_size
        registers = only(last.ip, (last.found_at or at) + size, last.address if size == 4 else None, size)
        walked = self._outwards(thread, registers, stack, exact=False)
        frames = (*found[:-1], replace(last, arguments=walked.frames[0].arguments), *walked.frames[1:])
        return self._walked(Walked(frames, walked.ending), start, exact=False)

    def _walked(self, walked: Walked, start: str, *, exact: bool) -> Stack:
        following = (*(found.ip for found in walked.frames[1:]), None)
        frames = tuple(
            Frame(
                self._names.of(found.ip, exact=found.how is How.INTERRUPTED or (exact and found is walked.frames[0])),
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


def _none(why: str) -> Stack:
    return Stack((), "", why)
