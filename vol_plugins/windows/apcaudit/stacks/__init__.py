"""Walks the kernel stacks of threads: finds the saved registers, unwinds from them, and names the frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..formats.crash_header import CrashHeader
from ..image.structures import read_member
from ..kernel import Kernel
from ..model import BugCheck, Thread
from ..unwind import Frame, How, Stack, StackKind, StackView
from ..unwind.registers import (
    CONTEXT_BYTES,
    SWITCH_FRAME_BYTES,
    ExceptionRegisters,
    Registers,
    partial_registers,
    registers_from_context,
    registers_from_switch_frame,
)
from ..unwind.scan import FRAMES_BOUND, FROM_USER, FoundFrame, Leaving, Scanner, Walked
from ..unwind.x64 import walk_x64
from ..unwind.x86 import walk_x86
from .entries import Callout, Exceptions, UserModeEntries
from .frame_names import FrameNames, ModuleCode
from .thread_stacks import ThreadStacks, is_running

# A frame and the stack that it is on.
_Placed = tuple[FoundFrame, StackKind]


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a walk starts: the registers, their stack, where they were saved, and whether the ip is exact.

    `exception` are the registers at the exception that the walk comes to.
    """

    registers: Registers
    stack: StackView
    source: str
    exact: bool
    exception: ExceptionRegisters | None = None


class Stacks:
    """Walks the stacks of threads.

    Args:
        kernel: the image's kernel.
        header: the crash dump's header; None where the image is not a crash dump.
        stopped: whether a bugcheck stopped the machine; then the processors saved their contexts.
        bugcheck: that bugcheck, None where it is unknown.
        crashed: virtual address of the thread that it stopped the machine on, None where it is unknown.
    """

    def __init__(
        self,
        kernel: Kernel,
        header: CrashHeader | None,
        *,
        stopped: bool,
        bugcheck: BugCheck | None = None,
        crashed: int | None = None,
    ) -> None:
        self._memory, self._symbols = kernel.memory, kernel.symbols
        self._header = header
        self._stopped = stopped
        self._crashed = crashed
        self._code = ModuleCode(kernel)
        self._entries = UserModeEntries(kernel, self._code)
        self._exceptions = Exceptions(kernel, bugcheck, self._entries.traps)
        self._stacks = ThreadStacks(kernel, self._code)
        self._names = FrameNames(kernel.drivers, self._code)

    def walk(self, thread: Thread) -> Stack:
        """Return the frames of a thread's stack, or the reason why there are none."""
        stacks = self._stacks.read(thread)
        if stacks and not stacks[0].kind.processors:
            stacks = (stacks[0].with_entry(self._entries.latest(thread, stacks[0])), *stacks[1:])
        start, stacks = self._find_start(thread, stacks)
        if start is not None:
            placed, ending = self._walk_all(thread, start, stacks)
            return self._name_frames(placed, start.source, ending, exact=start.exact)
        why = self._why_none(thread, stacks)
        return _no_frames(why) if why is not None else self._search(thread, stacks)

    def _why_none(self, thread: Thread, stacks: tuple[StackView, ...]) -> str | None:
        """Say why a thread has no frames; None if its stack can be searched."""
        limit, base = thread.members.stack_limit, thread.members.stack_base
        if limit is None or base is None:
            return "its limits cannot be read"
        if not stacks or stacks[0].kind.processors:
            return f"none, StackLimit is {limit:#x} and StackBase {base:#x}"
        if not stacks[0].present:
            resident = read_member(self._memory, self._symbols, "_ETHREAD", "Tcb.KernelStackResident", thread.address)
            return "not in the image" + ("" if resident is None else f" (KernelStackResident {resident})")
        return None

    def _find_start(self, thread: Thread, stacks: tuple[StackView, ...]) -> tuple[_Start | None, tuple[StackView, ...]]:
        """Find the registers from which to walk (None: none are usable), and return the stacks, if need be one more."""
        if not is_running(thread):
            return self._switch_frame(thread, stacks), stacks
        crashed = thread.address == self._crashed
        found = None
        for registers, source in self._contexts(thread):
            stack = next((each for each in stacks if each.present and each.holds(registers.sp)), None)
            if stack is None and crashed:
                stack = self._stacks.around(registers.sp, stacks)
                stacks = stacks if stack is None else (*stacks, stack)
            # Code outside of all modules can crash, too.
            if stack is not None and (crashed or self._code.is_code(registers.ip)):
                found = _Start(registers, stack, f"{source}{_on(stack)}", self._exact(registers))
                break
        exception = self._exceptions.find(stacks) if crashed else None
        if exception is None:
            return found, stacks
        return self._with_exception(found, exception, stacks), stacks

    def _with_exception(
        self, start: _Start | None, exception: ExceptionRegisters, stacks: tuple[StackView, ...]
    ) -> _Start | None:
        """Return where to start if the registers at the exception are known, too."""
        registers = exception.registers
        if start is not None and (start.registers.ip, start.registers.sp) == (registers.ip, registers.sp):
            # Those of a trap frame are not all.
            known = start.registers if None in registers.general else registers
            return replace(start, registers=known, exact=True)
        if start is not None and not (start.stack.holds(exception.top) and start.registers.sp >= exception.top):
            return replace(start, exception=exception)
        # What the header has is not of the code that handled the exception.
        stack = next((each for each in stacks if each.present and each.holds(registers.sp)), None)
        stack = stack or self._stacks.around(registers.sp, stacks)
        return start if stack is None else _Start(registers, stack, f"{exception.source}{_on(stack)}", exact=True)

    def _switch_frame(self, thread: Thread, stacks: tuple[StackView, ...]) -> _Start | None:
        """Read the registers of a thread that does not run."""
        size = self._memory.pointer_size
        address = thread.members.kernel_stack or 0
        stack = stacks[0] if stacks and stacks[0].holds(address) else None
        data = None if stack is None else self._memory.read(address, SWITCH_FRAME_BYTES[size])
        if stack is None or data is None:
            return None
        registers = registers_from_switch_frame(data, address, size)
        # If the switch frame has another form, the address read here usually does not follow a call.
        usable = self._code.call_before(registers.ip).follows is not False and self._code.is_code(registers.ip)
        if not usable or not stack.holds(registers.sp):
            return None
        return _Start(registers, stack, f"the switch frame at KernelStack {address:#x}", exact=False)

    def _contexts(self, thread: Thread) -> Iterator[tuple[Registers, str]]:
        """Yield candidates for a running thread's registers, and where they were saved."""
        size = self._memory.pointer_size
        if self._header is not None and self._header.pointer_size == size:
            registers = registers_from_context(self._header.context_record, size)
            if registers is not None:
                yield registers, "the context in the dump's header"
        context = self._processor_context(thread) if self._stopped else None
        data = None if context is None else self._memory.read(context, CONTEXT_BYTES[size])
        registers = None if data is None else registers_from_context(data, size)
        if registers is not None:
            number = "" if thread.processor is None else f" {thread.processor}"
            yield registers, f"the context of processor{number} in its KPRCB"

    def _exact(self, registers: Registers) -> bool:
        """Return whether a context's instruction pointer is the next instruction and not a return address.

        On x86 a bugcheck calls RtlCaptureContext, which saves the return address of its caller (ReactOS,
        sdk/lib/rtl/i386/except_asm.s).
        """
        return self._memory.pointer_size == 8 or not self._code.call_before(registers.ip).follows

    def _processor_context(self, thread: Thread) -> int | None:
        """Return the virtual address of _KPRCB.ProcessorState.ContextFrame of the processor that runs a thread."""
        member = self._symbols.member("_KPRCB", "ProcessorState.ContextFrame.ContextFlags")
        flags = self._symbols.member("_CONTEXT", "ContextFlags")
        prcb = self._stacks.processor(thread)
        return prcb + member.offset - flags.offset if prcb and member is not None and flags is not None else None

    def _walk_all(
        self, thread: Thread, start: _Start, stacks: tuple[StackView, ...]
    ) -> tuple[tuple[_Placed, ...], str]:
        """Walk all stacks: from registers to the entry from user mode, and on from each callout before that."""
        stack, exception = start.stack, start.exception
        walked = self._walk(start.registers, stack, exact=start.exact, exception=exception)
        placed: list[_Placed] = [(each, stack.kind) for each in walked.frames]
        left = [each for each in stacks if each.range != stack.range]
        callouts: list[tuple[Callout, StackView]] | None = None
        while len(placed) < FRAMES_BOUND:
            if exception is not None and _has(placed, exception):
                exception = None
            if walked.leaving is not None:
                leaving = walked.leaving
                other = next((each for each in left if each.holds(leaving.registers.sp)), None)
                if other is None:
                    return tuple(placed), "it goes back to a stack that it has left"
                left.remove(other)
                stack, first = other, None if leaving.same_frame else self._first_on(leaving)
                called = leaving.how is not How.SWITCHED or not leaving.exact
                walked = self._walk(leaving.registers, stack, exact=leaving.exact, called=called, exception=exception)
            elif exception is not None:
                # What handled it is on another stack, and where that began is not known.
                other = next((each for each in left if each.holds(exception.top)), None)
                if other is None:
                    break
                left.remove(other)
                stack, registers = other, exception.registers
                first = FoundFrame(registers.ip, How.INTERRUPTED, found_at=exception.found_at)
                walked = self._walk(registers, stack, exact=True)
            elif walked.ending == FROM_USER or (stack.entry is not None and walked.ending == stack.searched):
                callouts = self._entries.callouts(thread, stacks) if callouts is None else callouts
                if not callouts:
                    break
                callout, stack = callouts.pop(0)
                first = FoundFrame(callout.registers.ip, How.CALLOUT, found_at=callout.found_at, follows_call=True)
                walked = self._walk(callout.registers, stack, exact=False)
            else:
                break
            if first is not None:
                innermost = walked.frames[0]
                placed.append((replace(first, address=innermost.address, arguments=innermost.arguments), stack.kind))
            placed += [(each, stack.kind) for each in walked.frames[1:]]
        ending = walked.ending if stack.present else f"the {stack.kind.value} stack is not in the image"
        return tuple(placed[:FRAMES_BOUND]), ending

    def _first_on(self, leaving: Leaving) -> FoundFrame:
        """Return the frame with which a walk goes on on another stack."""
        ip = leaving.registers.ip
        follows = None if leaving.exact else self._code.call_before(ip).follows
        return FoundFrame(ip, leaving.how, found_at=leaving.found_at, follows_call=follows, certain=leaving.certain)

    def _walk(
        self,
        registers: Registers,
        stack: StackView,
        *,
        exact: bool,
        called: bool = True,
        exception: ExceptionRegisters | None = None,
    ) -> Walked:
        if exception is not None and not (stack.holds(exception.top) and registers.sp < exception.top):
            exception = None
        if stack.pointer_size == 8:
            return walk_x64(
                registers,
                stack,
                self._code,
                self._code.unwind_table,
                exact=exact,
                called=called,
                traps=self._exceptions.traps64,
                exception=exception,
            )
        return walk_x86(registers, stack, self._code, self._entries.traps, exact=exact, exception=exception)

    def _search(self, thread: Thread, stacks: tuple[StackView, ...]) -> Stack:
        """Search a stack for return addresses.

        The search starts at KernelStack if the thread does not run and KernelStack lies on the stack, else at
        StackLimit: KernelStack of a running thread is its stack pointer of the last wait.
        """
        stack = stacks[0]
        kernel_stack = 0 if is_running(thread) else thread.members.kernel_stack or 0
        at = kernel_stack if stack.holds(kernel_stack) else thread.members.stack_limit or stack.limit
        where = f"KernelStack {at:#x}" if at == kernel_stack else f"StackLimit {at:#x}"
        source = f"a search from {where}, since the thread has no usable saved registers"
        found = Scanner(stack, self._code).next_frames(0, at)
        if not found:
            return Stack((), source, f"no return address from {where} on")
        last = found[-1]
        size = stack.pointer_size
        registers = partial_registers(last.ip, (last.found_at or at) + size, last.address if size == 4 else None, size)
        placed, ending = self._walk_all(thread, _Start(registers, stack, source, exact=False), stacks)
        first = replace(last, arguments=placed[0][0].arguments)
        frames = (*((each, stack.kind) for each in (*found[:-1], first)), *placed[1:])
        return self._name_frames(frames, source, ending, exact=False)

    def _name_frames(self, placed: tuple[_Placed, ...], source: str, ending: str, *, exact: bool) -> Stack:
        following = (*(found.ip for found, _ in placed[1:]), None)
        frames = tuple(
            Frame(
                self._names.name(found.ip, exact=_is_exact(found) or (exact and position == 0)),
                found.how,
                found.address,
                found.found_at,
                return_address,
                found.arguments,
                found.follows_call,
                kind,
                found.certain,
            )
            for position, ((found, kind), return_address) in enumerate(zip(placed, following, strict=True))
        )
        return Stack(frames, source, ending)


def _is_exact(found: FoundFrame) -> bool:
    return found.how is How.INTERRUPTED or (found.how is How.SWITCHED and not found.follows_call)


def _has(placed: list[_Placed], exception: ExceptionRegisters) -> bool:
    """Return whether the frame of an exception is among frames."""
    return any(found.how is How.INTERRUPTED and found.found_at == exception.found_at for found, _ in placed)


def _on(stack: StackView) -> str:
    if stack.kind is StackKind.OTHER:
        return ", on a stack that is not known to be the thread's or its processor's"
    return "" if stack.kind is StackKind.THREAD else f", on the {stack.kind.value} stack"


def _no_frames(why: str) -> Stack:
    return Stack((), "", why)
