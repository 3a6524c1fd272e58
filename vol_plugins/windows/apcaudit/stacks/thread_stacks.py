"""Reads the kernel stacks that a thread is on: their memory, and where a walk goes on when one ends."""

from __future__ import annotations

from .. import windows
from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Thread, View
from ..threads.kernel_stacks import Segment, StackSegments, read_processor_stacks
from ..threads.kernel_views import PROCESSOR_BOUND
from ..unwind import StackKind, StackRange, StackView, Switch
from ..unwind.scan import CodeView

# What the kernel saves at the beginning of another x64 stack is at the places of a machine frame (RIP, CS, EFLAGS, RSP,
# SS) at its end, though of DPC stacks and expanded ones only RIP and RSP are filled in, and interrupt stacks have a
# return address and the stack pointer at these places (WRK, ke/amd64/callout.asm: KbFrame; decompiled
# KiInterruptDispatchNoLock of Windows 8.1 to 11; WinDbg shows KxRetireDpcList at the base less 50h).
_SAVED_RIP, _SAVED_RSP = 0x28, 0x10
# x86 pushes ESP at the beginning of the DPC stack (ReactOS, KiRetireDpcListInDpcStack; WinDbg shows the word above the
# return address of KiRetireDpcList as a frame of no module).
_SAVED_ESP = 4


def is_running(thread: Thread) -> bool:
    """Tell whether the thread ran when the image was made, so that KernelStack and what lies there are stale."""
    return thread.members.state == windows.RUNNING or thread.processor is not None or View.DUMP in thread.views


class ThreadStacks:
    """Reads the stacks of threads.

    Args:
        kernel: the image's kernel.
        code: the code of its modules.
    """

    def __init__(self, kernel: Kernel, code: CodeView) -> None:
        self._kernel = kernel
        self._memory, self._symbols = kernel.memory, kernel.symbols
        self._code = code
        self._segments = StackSegments(kernel)

    def read(self, thread: Thread) -> tuple[StackView, ...]:
        """Return the stacks that a thread may be on, as far as they are known: its own first, the one in use in front.

        A stack whose memory is not in the image is among them.
        """
        size = self._memory.pointer_size
        segments = [
            each
            for each in self._segments.read(thread.members)
            if 0 < each.limit < each.base <= each.limit + windows.STACK_BOUND and not (each.limit | each.base) % size
        ]
        own = [
            (StackRange(StackKind.EXPANDED if each.previous_sp else StackKind.THREAD, each.limit, each.base), each)
            for each in segments
        ]
        prcb = self.processor(thread) if is_running(thread) else None
        processors = () if prcb is None else read_processor_stacks(self._kernel, prcb)
        # A processor's first idle thread has the stack that is also the DPC stack.
        processors = tuple(each for each in processors if not any(one.holds(each.limit) for one, _ in own))
        if is_running(thread) and own:
            # A thread whose stack is full crashes with its stack pointer in the page below, which is not mapped.
            stack, segment = own[0]
            own[0] = (StackRange(stack.kind, max(stack.limit - windows.PAGE_SIZE, 0), stack.base), segment)
        ranges = tuple(each for each, _ in own)
        views = [
            self._view(stack, ranges[position + 1 :], self._switch(stack, segment))
            for position, (stack, segment) in enumerate(own)
        ]
        for stack in processors:
            others = (*ranges, *(each for each in processors if each is not stack))
            views.append(self._view(stack, others, self._switch(stack)))
        return tuple(views)

    def around(self, sp: int, known: tuple[StackView, ...]) -> StackView | None:
        """Return the memory around a stack pointer that is on no known stack; None where it is not in the image."""
        size = self._memory.pointer_size
        partial = self._memory.partial_layer
        dumped = None if partial is None else partial.crash_stack
        limit, base = dumped if dumped is not None and dumped[0] <= sp < dumped[1] else self._readable(sp)
        if sp % size or not limit <= sp < base <= limit + windows.STACK_BOUND:
            return None
        others = tuple(StackRange(each.kind, each.limit, each.base) for each in known)
        stack = StackRange(StackKind.OTHER, limit - limit % size, base - base % size)
        switch = self._switch(stack)
        view = self._view(stack, others, switch)
        # Nothing shows that this is where the stack begins, unless what is saved there does.
        saved = None if switch is None else view.word(switch.sp_at)
        return view if saved is not None and view.is_on_other(saved) else self._view(stack, others, None)

    def processor(self, thread: Thread) -> int | None:
        """Return the virtual address of the _KPRCB of the processor that runs a thread; None where it is unknown."""
        array, number = self._symbols.address("KiProcessorBlock"), thread.processor
        if array is not None and number is not None and 0 <= number < PROCESSOR_BOUND:
            prcb = self._memory.pointer(array + number * self._memory.pointer_size)
            if prcb:
                return prcb
        partial = self._memory.partial_layer
        prcb = partial.prcb_address if partial is not None else None
        current = None if prcb is None else read_member(self._memory, self._symbols, "_KPRCB", "CurrentThread", prcb)
        return prcb if current == thread.address else None

    def _readable(self, sp: int) -> tuple[int, int]:
        """Return the readable memory from the page of a stack pointer on, at most as much as a stack has."""
        start = sp & ~(windows.PAGE_SIZE - 1)
        data, holes = self._memory.read_sparse(start, _LARGE_STACK)
        end = next((begin for begin, end in holes if end > sp - start), len(data))
        return start, start + end

    def _switch(self, stack: StackRange, segment: Segment | None = None) -> Switch | None:
        base = stack.base if segment is None else segment.initial
        if stack.kind is StackKind.THREAD:
            return None
        if self._memory.pointer_size == 8:
            return Switch(base - _SAVED_RIP, base - _SAVED_RSP)
        return Switch(None, base - _SAVED_ESP) if stack.kind in (StackKind.DPC, StackKind.OTHER) else None

    def _view(self, stack: StackRange, others: tuple[StackRange, ...], switch: Switch | None) -> StackView:
        data, holes = self._memory.read_sparse(stack.limit, stack.base - stack.limit)
        return StackView(
            stack.limit, data, holes, self._memory.pointer_size, kind=stack.kind, switch=switch, others=others
        )


_LARGE_STACK = 0x12000  # KERNEL_LARGE_STACK_SIZE of x64 (WDK, ntddk.h); that of x86 is smaller
